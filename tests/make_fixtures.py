"""Write the fixtures that other people's code makes: tiny Hugging Face folders with their expected outputs.

  python tests/make_fixtures.py [OUT] [MODULE ...]

needs torch and transformers, which the package and its tests do not: run it in an environment of its own. Every module
of tests/fixture_makers has a function `make(out)` that writes its folders below OUT (default: tests/fixtures/hf).
"""

import importlib
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def main(out: Path, chosen: list[str]) -> None:
    """Run the chosen makers, all without a choice."""
    sys.path.insert(0, str(TESTS))
    makers = sorted(path.stem for path in (TESTS / "fixture_makers").glob("*.py") if path.stem != "__init__")
    unknown = set(chosen) - set(makers)
    if unknown:
        raise SystemExit(f"No such maker: {sorted(unknown)}. Known: {', '.join(makers)}.")
    for name in chosen or makers:
        importlib.import_module(f"fixture_makers.{name}").make(out)
        print(f"{name}: written below {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TESTS / "fixtures" / "hf", sys.argv[2:])
