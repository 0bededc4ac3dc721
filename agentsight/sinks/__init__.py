"""Where events go: the console, JSON-lines files. A sink gets only redacted events."""
