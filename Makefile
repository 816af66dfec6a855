# Every chore is one command. All of them work from a fresh clone: they make .venv first.
#
#   make setup                         the virtual environment, with everything the rest needs
#   make pong [ARGS="--steps 20000"]   train a CoordConv agent to play Pong
#   make coordinates                   the paper's coordinate tasks: a quick table and its figures
#   make detection                     detectors with and without coordinates: a quick table
#   make gan                           its generative models: a quick table, samples and films
#   make check                         what a change has to pass: lint, types, all tests
#
# Choose the interpreter with `make setup PYTHON=python3.12`, before there is a .venv. pip reads its
# own settings: to take a CPU-only torch from another index, set PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An editable install remembers where each module lies, so a list of other modules is another stamp.
MODULES := $(shell find coordrl -name '*.py' | LC_ALL=C sort | cksum | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed-$(MODULES)
# What the compiled emulator is made of: a change there is compiled by the next command.
SOURCES := $(wildcard $(addprefix coordrl/emulator/,*.hpp *.cpp *.cu *.json *.txt host/*.hpp host/*.cpp \
	generate_games.py source_checksum.py))
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup pong coordinates detection gan test test-slow lint types bench sanitize wheel check

help:
	@sed -n '3,8s/^# *//p' $(MAKEFILE_LIST)
	@echo "others: test test-slow lint types bench sanitize wheel"

setup: $(INSTALLED)

# torch goes first and alone: a resolver that meets it among the other requirements may take a
# build for the wrong hardware before the constraint is read.
$(INSTALLED): pyproject.toml constraints.txt $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "coordrl needs Python 3.11 or newer; try: make setup PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c 'from coordrl.emulator import unavailable_reason as r; print(end=r() and r() + "\n")' >&2
	rm -f $(VENV)/.installed-*
	touch $@

pong: setup
	$(BIN)/python scripts/train_atari.py --env Pong $(ARGS)

# Every run is cut short, so that all end within 15 minutes on two idle cores. The record in
# benchmarks/ is made with --table full.
coordinates: setup
	$(BIN)/python scripts/train_coordinates.py --table quick $(ARGS)

# One seed and two epochs of each arm; the record in benchmarks/ is made with --table full.
detection: setup
	$(BIN)/python scripts/train_detector.py --table quick $(ARGS)

# One seed of each model on pictures of 16x16, within 15 minutes on two idle cores. The record in
# benchmarks/ is made with --table small.
gan: setup
	$(BIN)/python scripts/train_gan.py --table quick $(ARGS)

# Two workers with one torch thread each: on few cores more threads only wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/python scripts/benchmark.py $(or $(ARGS),training)

# The emulator with AddressSanitizer and UndefinedBehaviorSanitizer on random ROMs and spoiled states;
# another run of other ones: make sanitize FIRST=500 ROUNDS=5000.
FIRST ?= 0
ROUNDS ?= 500
SANITIZED := build/sanitize
ROMS = "$(shell $(BIN)/python -c 'import ale_py.roms as r; print(*r.__path__)')"/*.bin

sanitize: $(SANITIZED)/fuzz_emulator
	$< $(FIRST) $(ROUNDS) $(ROMS)

$(SANITIZED)/fuzz_emulator: $(SANITIZED)/fuzz_emulator.o $(SANITIZED)/interpreter.o
	$(CXX) -fsanitize=address,undefined $^ -o $@

# Nothing is forced inline: instrumented, the processor as one function takes minutes to compile.
$(SANITIZED)/%.o: %.cpp $(SANITIZED)/games.hpp
	$(CXX) -std=c++17 -O1 -g1 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wpedantic \
		-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
		-DCOORDRL_INLINE=inline -I$(SANITIZED) -Icoordrl/emulator -c $< -o $@

$(SANITIZED)/games.hpp: $(INSTALLED)
	mkdir -p $(SANITIZED)
	$(BIN)/python coordrl/emulator/generate_games.py coordrl/emulator/games.json $@

vpath %.cpp tests coordrl/emulator

# A source archive and, built from it, a wheel for this interpreter, in dist/.
wheel: setup
	$(BIN)/python -m build

check: lint types test test-slow sanitize
