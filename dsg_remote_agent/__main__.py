"""``python -m dsg_remote_agent``."""

from __future__ import annotations

from dsg_remote_agent.main import main

raise SystemExit(main())
