"""A bucket in memory: paths that begin with gs://, without a network."""

from typing import ClassVar

import fsspec
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Google storage as far as paths go, in memory; `gcs` is what etils asks fsspec for."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


def empty(name: str) -> epath.Path:
    """A directory in the bucket, of which nothing is left from before; another module may have used it too."""
    for protocol in Bucket.protocol:
        fsspec.register_implementation(protocol, Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    return epath.Path(f"gs://bucket/{name}")
