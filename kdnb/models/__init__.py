from . import generation # noqa: F401 (with what it imports, it gives LM all of its properties)
