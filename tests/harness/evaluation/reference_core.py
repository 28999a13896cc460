"""Core by its definition: one item at a time, each option by itself, no batch, no cache. Shares no code with
`harness.evaluation`."""

from __future__ import annotations

import json
import random

import torch


def read(path):
    with path.open(encoding="utf-8") as handle:
        data = [json.loads(line) for line in handle]
    random.Random(1337).shuffle(data)
    return data


def score(model, tokenizer, data, index, task, *, bos, depth, state_seed, seed=1234):
    """Return the log-probability of each option's scored tokens, their number, and prediction or success."""
    item, kind, delimiter = data[index], task["icl_task_type"], task.get("continuation_delimiter", " ")
    examples = []
    if shots := task["num_fewshot"][0]:
        others = [i for i in range(len(data)) if i != index]
        examples = [data[i] for i in random.Random(seed + index).sample(others, shots)]
    prompt = "".join(solved(example, kind, delimiter) + "\n\n" for example in examples)
    if kind == "multiple_choice":
        texts = [prompt + item["query"] + delimiter + choice for choice in item["choices"]]
    elif kind == "schema":
        texts = [prompt + context + delimiter + item["continuation"] for context in item["context_options"]]
    else:
        question = prompt + item["context"].strip() + delimiter
        texts = [question.strip(), question + item["continuation"]]
    ids = [[bos, *tokenizer.encode(text, add_special_tokens=False).ids] for text in texts]
    if kind == "multiple_choice":
        starts = [shared(ids)] * len(ids)
    elif kind == "schema":
        starts = [len(one) - shared([other[::-1] for other in ids]) for one in ids]
    else:
        assert ids[1][: len(ids[0])] == ids[0]
        starts, ids = [len(ids[0])], ids[1:]
    sums, counts, hits = [], [], []
    for tokens, start in zip(ids, starts, strict=True):
        limit = model.config.sequence_length
        start -= max(0, len(tokens) - limit)
        tokens, start = tokens[-limit:], max(start, 1)
        logits = model.logits(torch.tensor([tokens]), [depth], [state_seed])[0]
        answer = tokens[start:]
        at = range(start - 1, len(tokens) - 1)
        log_p = {i: torch.log_softmax(logits[i].double(), dim=-1) for i in at}
        sums.append(sum(log_p[i][token].item() for i, token in zip(at, answer, strict=True)))
        counts.append(len(answer))
        hits.append(all(logits[i].argmax() == token for i, token in zip(at, answer, strict=True)))
    if kind == "language_modeling":
        return sums, counts, hits[0]
    means = [-total / count if count else float("nan") for total, count in zip(sums, counts, strict=True)]
    return sums, counts, means.index(min(means))


def solved(example, kind, delimiter):
    if kind == "multiple_choice":
        return example["query"] + delimiter + example["choices"][example["gold"]]
    if kind == "schema":
        return example["context_options"][example["gold"]] + delimiter + example["continuation"]
    return example["context"].strip() + delimiter + example["continuation"]


def shared(sequences):
    count = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
