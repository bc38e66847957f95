# Needs Python >= 3.10 with pip and venv, and make.  Everything is installed into .venv and build/, nothing outside them.
#   make demo      segment the example images, write out/demo.png
#   make test      the test suite
#   make test-oldest   the same with the oldest versions that setup.py admits, by python3.10 in build/oldest
#   make test-browser  the page under mouse, keyboard and touch, in Chromium
#   make test-tools    real Label Studio, CVAT, napari, X-AnyLabeling, labelme and others; some gigabytes of them go to build/tools
#   make test-frozen   a program frozen by PyInstaller gives the same masks
#   make test-kills    the server killed 100 times in the middle of work: nothing may be lost
#   make test-slow the checks that take many minutes: planted bugs, every kernel configuration
#   make fuzz      hostile input at every door, FUZZ_EXAMPLES (12500) for each of eight; the tests draw 750
#   make fuzz-serve  the same for the server: SERVE_EXAMPLES (500) for each operation of its OpenAPI document, its WebSocket, packed arrays
#   make soak      a million clicks beside each other: memory, handles, threads and latency must stay flat
#   make lint      ruff and mypy
#   make docs      these pages and the reference as a site, in build/site; any warning fails it
#   make bench     the latency tests, beside their references and the last committed result
#   make install   what all of them need; skipped while setup.py and the constraints are unchanged
# PYTHON=python3.12 picks the interpreter.  TORCH=cpu (default) | cuda12 | cuda13 picks the build of torch.
# VENV=folder takes another environment than .venv, CONSTRAINTS=file other versions than constraints/cpu.txt.

PYTHON ?= python3
TORCH ?= cpu
VENV ?= .venv
CONSTRAINTS ?= constraints/cpu.txt

CPU_INDEX = https://download.pytorch.org/whl/cpu
BIN = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALLED = $(VENV)/installed-$(TORCH)

ifeq ($(filter $(TORCH),cpu cuda12 cuda13),)
$(error TORCH=$(TORCH) is not known: use TORCH=cpu, TORCH=cuda12 or TORCH=cuda13)
endif

.PHONY: install demo test test-oldest test-browser test-tools test-frozen test-kills test-slow lint docs layout bench fuzz fuzz-serve soak clean

install: $(INSTALLED)

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "%s is Python %d.%d; Python 3.10 or newer is needed: make PYTHON=..." % (sys.executable, *sys.version_info[:2]))'
	$(PYTHON) -m venv $(VENV)

ifeq ($(TORCH),cpu)
# torch comes first and alone: pip's own indexes are asked first (PyPI outside Linux, a local mirror), PyTorch's only when
# they have no CPU build.  The first answer is shown only if the second one fails too.
$(INSTALLED): setup.py pyproject.toml $(CONSTRAINTS) | $(VENV)/pyvenv.cfg
	@echo "Installing the CPU build of torch into $(VENV)"
	@$(PIP) install --quiet --no-deps -c $(CONSTRAINTS) torch 2>$(VENV)/torch.log || { \
	  echo "pip's own indexes have no CPU build; asking $(CPU_INDEX)"; \
	  $(PIP) install --no-deps --retries 1 --timeout 30 -c $(CONSTRAINTS) --index-url $(CPU_INDEX) torch || { \
	    cat $(VENV)/torch.log; \
	    echo "error: no CPU build of torch for this Python could be had ($(CONSTRAINTS)). Is the network there?" \
	         "PYTHON=python3.12 picks another interpreter."; exit 1; }; } >&2
	@echo "Installing activefreq_engine and its tools into $(VENV)"
	@$(PIP) install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	@rm -f $(VENV)/installed-* && touch $@
else
$(INSTALLED): setup.py pyproject.toml | $(VENV)/pyvenv.cfg
	@test ! -e $(VENV)/installed-cpu || $(PIP) uninstall --quiet -y torch
	$(PIP) install -e ".[dev,$(TORCH)]"
	@rm -f $(VENV)/installed-* && touch $@
endif

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

# A process for each core, each of one thread.  `.venv/bin/python -m pytest FILE` runs in one process.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal

test-oldest: PYTHON = python3.10
test-oldest:
	$(MAKE) test PYTHON=$(PYTHON) VENV=build/oldest TORCH=cpu CONSTRAINTS=constraints/oldest.txt

# Chromium by your system's package manager; CHROMIUM=/path/to/it if it is not /usr/bin/chromium.
test-browser: $(INSTALLED)
	$(PIP) install --quiet playwright
	ACTIVEFREQ_BROWSER=1 $(BIN)/python -m pytest tests/browser

# Each tool in an environment of its own; napari's, labelme's and CVAT's borrow torch and the rest from .venv.  napari, nninteractive and labelme need Xvfb, see docs/napari.md.
build/tools/%/installed: $(INSTALLED)
	$(BIN)/python -m venv build/tools/$*
	build/tools/$*/bin/python -m pip install --quiet $(TOOL_$*)
	test -z "$(filter $*,cvat napari labelme)" || { $(BIN)/python -c '$(SITE)' > "$$(build/tools/$*/bin/python -c '$(SITE)')/lent.pth" && \
	  build/tools/$*/bin/python -m pip install --quiet --no-deps -e .; }
	@touch $@

SITE = import sysconfig; print(sysconfig.get_path("purelib"))
SITES = import sys; print(*(p for p in sys.path if p.endswith("site-packages")), sep="\n")
TOOL_label-studio = label-studio==1.23.2
TOOL_cvat = cvat-sdk==2.80.0 cvat-cli==2.80.0
TOOL_x-anylabeling = x-anylabeling-cvhub==4.2.1
TOOL_napari = napari==0.9.2 PyQt6 pytest pytest-qt opencv-python-headless
TOOL_nninteractive = napari==0.9.2 PyQt6 napari-nninteractive==2.5.4 nninteractive-client==2.6.0
TOOL_labelme = labelme==6.3.1 opencv-python-headless
TOOL_onnxruntime = onnxruntime==1.15.1 "numpy<2"
TOOL_readers = labelme==5.5.0 supervision==0.31.2 geojson==3.3.0 opencv-python-headless

test-tools: $(INSTALLED) $(foreach tool,label-studio cvat napari nninteractive labelme x-anylabeling onnxruntime readers,build/tools/$(tool)/installed)
	ACTIVEFREQ_TOOLS=build/tools $(BIN)/python -m pytest tests/tools

# The package as a wheel, as those have it who freeze a program.
build/tools/frozen/installed: $(INSTALLED)
	$(BIN)/python -m venv build/tools/frozen
	$(BIN)/python -c '$(SITES)' > "$$(build/tools/frozen/bin/python -c '$(SITE)')/lent.pth"
	build/tools/frozen/bin/python -m pip install --quiet pyinstaller
	@touch $@

test-frozen: build/tools/frozen/installed
	build/tools/frozen/bin/python -m pip install --quiet --no-deps --force-reinstall .
	ACTIVEFREQ_TOOLS=build/tools $(BIN)/python -m pytest -rA tests/tools/test_frozen.py

test-kills: $(INSTALLED)
	ACTIVEFREQ_KILLS=100 $(BIN)/python -m pytest tests/serve/test_journal.py -k kill_9

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Tools that read sources cannot follow an editable install that maps kernels/ into the package: they are shown the installed layout.
layout:
	@rm -rf build/lint && mkdir -p build/lint/activefreq_engine
	@ln -s "$(CURDIR)"/activefreq_engine/* "$(CURDIR)"/kernels build/lint/activefreq_engine/

lint: $(INSTALLED) layout
	$(BIN)/ruff check .
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml activefreq_engine

docs: $(INSTALLED) layout
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# The comparison is printed even if a check has failed; what failed has no time in it.
bench: $(INSTALLED)
	@mkdir -p out && rm -f out/latency.json
	@$(BIN)/python -m pytest --benchmark --benchmark-quiet --benchmark-json=out/latency.json; status=$$?; \
	  test ! -s out/latency.json || $(BIN)/python -m bench.speed.compare out/latency.json; exit $$status

fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),12500) $(BIN)/python -m pytest tests/session/test_hostile.py

fuzz-serve: $(INSTALLED)
	FUZZ_EXAMPLES=$(or $(SERVE_EXAMPLES),500) $(BIN)/python -m pytest -s tests/serve/test_openapi.py tests/serve/test_fuzz.py

# SOAK="--clicks 20000 --answered 2000" makes it short
soak: $(INSTALLED)
	MALLOC_ARENA_MAX=2 $(BIN)/python -m bench.speed.soak $(SOAK)

clean:
	rm -rf .venv build out
