from . import storage # noqa: F401 (it gives Edit the methods save and load)
