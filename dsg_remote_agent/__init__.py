"""The agent: what runs on the server, one process for each client."""
