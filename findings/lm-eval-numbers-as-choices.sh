#!/usr/bin/env bash
# lm-eval 0.4.13. A task's doc_to_target is the field `answer`, or the template "{{answer}}": one would expect the same. The template's
# text is taken for the place of a choice, counted from 0, if it is made of digits, also where choices are such texts themselves.
# Seen: of the grades 1, 2, 3 and the answer "1" the model that prefers "1" is right by the field and wrong by the template, by which 2 is
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" lm-eval==0.4.13 datasets==5.2.0
PYTHONPATH=$d HF_HOME=$d/hf HF_HUB_OFFLINE=1 python3 - "$d" 2>/dev/null <<'E'
import json
import sys

from lm_eval.api.task import ConfigurableTask

row = {"question": "Which grade?", "grades": ["1", "2", "3"], "answer": "1"}
file = f"{sys.argv[1]}/rows.json"
with open(file, "w") as f:
    json.dump([row], f)


def accuracy(target, likelihoods):
    config = {
        "task": "grades",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": file}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "grades",
        "doc_to_target": target,
        "metric_list": [{"metric": "acc"}],
    }
    results = [(value, False) for value in likelihoods]
    return ConfigurableTask(config=config).process_results(row, results)["acc"]


prefers_1, prefers_2 = (-1.0, -5.0, -9.0), (-5.0, -1.0, -9.0)
by_field, by_template = accuracy("answer", prefers_1), accuracy("{{answer}}", prefers_1)
print("the model that prefers 1: by the field", by_field, "by the template", by_template)
print("the model that prefers 2, by the template", accuracy("{{answer}}", prefers_2))
assert by_field == 1 and by_template == 0 and accuracy("{{answer}}", prefers_2) == 1
E
