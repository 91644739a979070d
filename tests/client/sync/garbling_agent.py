"""The real agent with a line that breaks: once it says that it reached a failpoint, garbage comes instead.

python garbling_agent.py AGENT-COMMAND...
"""

import os
import subprocess
import sys
import threading


def pump(source: int, sink: int) -> None:
    while chunk := os.read(source, 65536):
        os.write(sink, chunk)


def main() -> None:
    agent = subprocess.Popen(sys.argv[1:], stdin=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert agent.stdout and agent.stderr
    threading.Thread(target=pump, args=(agent.stdout.fileno(), 1), daemon=True).start()
    for line in agent.stderr:
        if line.startswith(b"failpoint "):
            os.write(1, b"garbage" * 100)
    os._exit(agent.wait())


if __name__ == "__main__":
    main()
