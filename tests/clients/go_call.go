// One request over TLS: go_call HOST:PORT [1.2]. Any certificate will do. Prints how many bytes came back.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
)

func main() {
	config := &tls.Config{InsecureSkipVerify: true}
	if len(os.Args) > 2 && os.Args[2] == "1.2" {
		config.MaxVersion = tls.VersionTLS12
	}
	conn, err := tls.Dial("tcp", os.Args[1], config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n")
	data, _ := io.ReadAll(conn)
	fmt.Println(len(data))
}
