"""Run by the Python of an environment that has the package installed and nothing of its sources: is it all there?

    python installed.py VERSION

Imports nothing of the tests, since they are not there either.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

MODULES = [
    "idp_middleware",
    "idp_middleware.config",
    "idp_middleware.errors",
    "idp_middleware.fastapi",
    "idp_middleware.observers",
    "idp_middleware.providers",
    "idp_middleware.sources",
    "idp_middleware.stores",
    "idp_middleware.testing",
]


def main(version: str) -> None:
    package = importlib.import_module("idp_middleware")
    where = Path(str(package.__file__)).parent
    assert where.is_relative_to(sys.prefix), f"{where} is not what was installed"
    assert package.__version__ == importlib.metadata.version("idp-middleware") == version
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            assert getattr(module, public) is not None, (name, public)
    assert (where / "py.typed").is_file()
    assert importlib.util.find_spec("tests") is None
    assert importlib.util.find_spec("benchmarks") is None
    plugins = importlib.metadata.entry_points(group="pytest11")
    assert all(importlib.util.find_spec(plugin.module) for plugin in plugins if plugin.dist.name == "idp-middleware")
    print(f"all of idp-middleware {version} is there")


if __name__ == "__main__":
    main(sys.argv[1])
