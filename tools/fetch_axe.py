"""axe-core, which looks for accessibility faults in the pages of reports, into build/axe-core.

    make axe        # or: python tools/fetch_axe.py (needs npm)

For tests alone: without it those that need it are skipped. The version is exact and its checksum known.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from smidgen.errors import UserError
from smidgen.serve.vendor import Package, fetch

PLACE = Path(__file__).resolve().parents[1] / "build" / "axe-core"
AXE = Package(
    name="axe-core", version="4.10.3",
    integrity="Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg==",
    files={"axe.min.js": "axe.min.js", "LICENSE": "LICENSE"},
)  # fmt: skip


def main() -> int:
    """Fetch it; the exit code."""
    try:
        with tempfile.TemporaryDirectory(prefix="axe-") as scratch:
            fetch(Path(scratch), (AXE,))
            PLACE.mkdir(parents=True, exist_ok=True)
            for name in AXE.files:
                shutil.copyfile(Path(scratch) / AXE.folder / name, PLACE / name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"axe-core {AXE.version} is in {PLACE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
