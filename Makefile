# make demo   a real language model learns eight new entities, by six methods; ends with a table and a report
# make test   every notebook, the invariants, the command line, bad inputs
# make docs   the site, in _docs: runs the notebooks of the book, if they or the package changed
# They make .venv the first time and install into it.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-all docs readme clean
demo: .venv/installed
	$(BIN)/kdnb demo

# a process for each core, with one thread each: most tests are on tiny models, which more threads do not make quicker
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow" tests

test-all: .venv/installed
	$(BIN)/python -m pytest -q tests

docs: .venv/installed
	$(BIN)/python docs/build.py

readme: .venv/installed
	$(BIN)/python tests/readme.py --write

.venv/installed: setup.py settings.ini constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
