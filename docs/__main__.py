"""`python -m docs [DIRECTORY]`: the site in DIRECTORY/site (default: build/site), strictly: a dead link is an error."""

import sys
from pathlib import Path

from docs.assemble import ROOT, assemble, build

directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build"
assemble(directory)
status = build(directory)
if not status:
    print(f"Open {directory / 'site' / 'index.html'}")
sys.exit(status)
