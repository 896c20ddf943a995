"""Gumbel search written again, plainly: objects, recursion, one simulation at a time.

Only the engine, the evaluator and the noise are shared with the real one.
"""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game import get_rules, layout
from ringrift_pipeline.search.noise import gumbel

from .conftest import after, legal, result


class Node:
    def __init__(self, config, row, evaluator):
        self.row = row
        self.moves = legal(config, row)
        self.seat = int(row[layout.PLAYER])
        self.children: dict[int, Node] = {}
        self.values: list[np.ndarray] = []
        if self.moves:
            logits, value = evaluator.one(row, len(self.moves))
            self.logits = [float(x) for x in logits]
            self.value = value.astype(np.float64)
        else:
            self.value = result(config, row)

    def swaps(self, action):
        return (self.moves[action] & layout.KIND_MASK) == layout.SWAP_SIDES

    def child_values(self, action):
        """All values backed up through an action, as this node's seats see them."""
        values = self.children[action].values
        return [v[[1, 0]] if self.swaps(action) else v for v in values]

    def visits(self, action):
        return len(self.children[action].values) if action in self.children else 0

    def prior(self):
        weights = np.exp(np.array(self.logits) - max(self.logits))
        return weights / weights.sum()

    def mixed_value(self):
        tried = sorted(self.children)
        n = sum(self.visits(a) for a in tried)
        if n == 0:
            return self.value
        prior = self.prior()
        q = sum(prior[a] * np.mean(self.child_values(a), axis=0) for a in tried)
        return (self.value + n * q / sum(prior[a] for a in tried)) / (1 + n)

    def improved_logits(self, c_visit, c_scale):
        most = max((self.visits(a) for a in self.children), default=0)
        mixed = self.mixed_value()
        out = []
        for a, logit in enumerate(self.logits):
            q = np.mean(self.child_values(a), axis=0) if a in self.children else mixed
            out.append(logit + (c_visit + most) * c_scale * q[self.seat])
        return np.array(out)

    def improved_policy(self, c_visit, c_scale):
        logits = self.improved_logits(c_visit, c_scale)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()


class PlainSearch:
    def __init__(self, config, evaluator, settings, row, seed, simulations):
        self.config, self.evaluator, self.settings = config, evaluator, settings
        self.players = get_rules(config).players
        self.root = root = Node(config, row.copy(), evaluator)
        scale = settings.gumbel_scale
        n = len(root.moves)
        self.noise = [scale * gumbel(np.uint64(seed), a) if scale else 0.0 for a in range(n)]
        left = list(range(n))
        m = min(settings.max_considered, n)
        phases = max(1, math.ceil(math.log2(m))) if m > 1 else 1
        width, done = m, 0
        while done < simulations:
            rounds = max(1, simulations // (phases * width)) if m > 1 else simulations
            for _ in range(rounds):
                score = self.scores()
                left = sorted(left, key=lambda a: -score[a])[:width]
                for a in left:
                    if done < simulations:
                        self.simulate(root, a)
                        done += 1
            width = max(2, width // 2) if m > 1 else 1
        self.policy = root.improved_policy(settings.c_visit, settings.c_scale)
        self.visits = [root.visits(a) for a in range(n)]
        most = max(self.visits)
        score = self.scores()
        self.selected = max((a for a in range(n) if self.visits[a] == most), key=lambda a: score[a])
        mixed = root.mixed_value()
        self.search_value = sum(
            p * (np.mean(root.child_values(a), axis=0) if a in root.children else mixed)
            for a, p in enumerate(self.policy)
        )
        self.surprise = sum(
            p * math.log(p / q) for p, q in zip(self.policy, root.prior(), strict=True) if p > 0
        )

    def scores(self):
        improved = self.root.improved_logits(self.settings.c_visit, self.settings.c_scale)
        return improved + np.array(self.noise)

    def simulate(self, node, action):
        """One simulation through ``action``; returns its value as ``node``'s seats see it."""
        if action not in node.children:
            row = after(self.config, node.row, node.moves[action])
            child = node.children[action] = Node(self.config, row, self.evaluator)
            value = child.value
        else:
            child = node.children[action]
            value = self.simulate(child, self.follow(child)) if child.moves else child.value
        child.values.append(value)
        return value[[1, 0]] if node.swaps(action) else value

    def follow(self, node):
        policy = node.improved_policy(self.settings.c_visit, self.settings.c_scale)
        total = sum(node.visits(a) for a in node.children)
        share = [p - node.visits(a) / (1 + total) for a, p in enumerate(policy)]
        return int(np.argmax(share))
