"""Installs kdnb; everything it says is read from settings.ini, where nbdev reads it too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split() for name in ("lab", "ray", "docs", "tests")}
extras["docs"] += extras["lab"] # the notebooks of the book are run
extras["dev"] = sum(extras.values(), [])

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=["kdnb", "kdnb.*"]),
    # An installation with -e then puts this folder on Python's path. The folder that holds a clone is often
    # called kdnb as well; without this line it hides the package from Python started there.
    package_dir={"": "."},
    package_data={"kdnb": ["assets/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
