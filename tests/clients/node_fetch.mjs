// Model calls with node's fetch: keep-alive, streamed. Trusts NODE_EXTRA_CA_CERTS.
//
// Usage: node node_fetch.mjs URL [CALLS [AT_ONCE [MODEL [PAD]]]]. Prints one JSON line {"pid", "calls", "texts", "chunks"}.
const [url, calls = '1', atOnce = '1', model = 'script-text', pad = '0'] = process.argv.slice(2);

let next = 0;
let chunks = 0;
const texts = new Set();

async function call(number) {
  const answer = await fetch(`${url}/v1/messages`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-api-key': 'sk-ant-test' },
    body: JSON.stringify({
      model,
      max_tokens: 256,
      stream: true,
      messages: [{ role: 'user', content: `Say hi. (${number})` }],
      metadata: { user_id: 'x'.repeat(Number(pad)) },
    }),
  });
  if (answer.status !== 200) throw new Error(`status ${answer.status}`);
  const decoder = new TextDecoder();
  let whole = '';
  for await (const chunk of answer.body) {
    chunks += 1;
    whole += decoder.decode(chunk, { stream: true });
  }
  const events = whole.split('\n').filter((line) => line.startsWith('data: ')).map((line) => JSON.parse(line.slice(6)));
  if (events.at(-1).type !== 'message_stop') throw new Error('the stream has no end');
  texts.add(events.map((event) => event.delta?.text ?? '').join(''));
}

async function worker() {
  while (next < Number(calls)) await call(next++);
}

await Promise.all(Array.from({ length: Number(atOnce) }, worker));
console.log(JSON.stringify({ pid: process.pid, calls: Number(calls), texts: [...texts].sort(), chunks }));
