"""An object store on the local disk, which serves `gs://` through fsspec, as gcsfs does for epath."""

import os
import sys
from pathlib import Path

import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.local import LocalFileSystem


class Counted:
    """A file that adds up what is read of it."""

    def __init__(self, file, name: str, reads: dict[str, int]):
        self.file, self.name, self.reads = file, name, reads

    def read(self, count: int = -1) -> bytes:
        block = self.file.read(count)
        self.reads[self.name] = self.reads.get(self.name, 0) + len(block)
        return block

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


class Store(LocalFileSystem):
    """`gs://bucket/x` is the file `<root>/bucket/x`; folders come with the files in them."""

    protocol, cachable = ("gs", "gcs"), False
    root: str
    reads: dict[str, int]

    def __init__(self, **_settings):
        super().__init__(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        return super()._strip_protocol(f"{cls.root}/{path.split('://')[1]}" if "://" in path else path)

    def _open(self, path, mode="rb", **settings):
        file = super()._open(path, mode, **settings)
        return Counted(file, os.path.relpath(path, self.root), self.reads) if "r" in mode else file


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    """The folder behind gs://bucket; `Store.reads` counts the bytes read of each of its files."""
    monkeypatch.setenv("PBRL_MODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EPATH_USE_TF", "0")
    monkeypatch.setattr(Store, "root", str(tmp_path / "store"), raising=False)
    monkeypatch.setattr(Store, "reads", {}, raising=False)
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Store)
    caches = (gpath._is_tf_installed, backend._FileSystemSpecBackend._get_filesystem)
    for cache in caches:
        cache.cache_clear()
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    assert epath.Path("gs://bucket").is_dir() and not epath.Path("gs://other").exists()
    yield tmp_path / "store" / "bucket"
    for cache in caches:
        cache.cache_clear()
