"""The command line: options, documents, output."""
