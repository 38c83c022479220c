# make demo   a real language model learns a few new entities in minutes; a first picture, then a table and a page
#             make demo FULL=1: all six methods, more entities and more steps
# make test   the quick tests: invariants, the command line, bad inputs, notebooks that need no real model, ruff
# make test-all   every notebook and test: also those that need a real model, a browser, Ray or many minutes
# make book   runs the tutorials and chapters, and stores their outputs in them
# make docs   the site, in _docs
# They make .venv the first time and install into it: the core for the demo, the extra dev for the others.
PYTHON ?= python3
BIN = .venv/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all book docs readme clean
# threads that wait sleep: on cores that other programs use as well, waiting in a loop takes several times as long
demo: .venv/core
	OMP_WAIT_POLICY=passive $(BIN)/kdnb demo $(if $(filter-out 0,$(FULL)),--full)

# a process for each core, with one thread each: most tests are on tiny models, which more threads do not make quicker
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow and not long" tests

test-all: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal tests

book: .venv/dev
	$(BIN)/python docs/book.py

docs: .venv/dev
	$(BIN)/python docs/build.py

readme: .venv/dev
	$(BIN)/python tests/readme.py --write

.venv/core: setup.py settings.ini constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --no-compile -e . # Python compiles what is used, which is little
	touch $@

.venv/dev: .venv/core
	$(INSTALL) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
