"""The published form of the loop: all sequences run to the deepest draw, masks discard the surplus."""

import torch

from model.kernels import IGNORE, summed_nats


def masked_loss(model, tokens, labels, depths, state_seeds):
    x, context = model._embed(tokens)
    x = model._blocks(model.prelude, 0, x, context)
    drive, carry = model.injection.prepare(model.prelude_norm(x))
    state = model._first_states(state_seeds, x)
    depths = torch.tensor(depths, device=x.device)
    with_gradient = depths.clamp(max=model.config.resolved_backprop_depth)
    without = depths - with_gradient
    with torch.no_grad():
        for loop in range(int(without.max())):
            advanced = model.loop_once(state, drive, carry, context)
            state = torch.where((loop < without)[:, None, None], advanced, state)
    for loop in range(int(with_gradient.max())):
        advanced = model.loop_once(state, drive, carry, context)
        state = torch.where((loop < with_gradient)[:, None, None], advanced, state)
    x = model.final_norm(model._after_loop(state, context))
    nats = summed_nats(x.flatten(0, 1), model.embedding, labels.flatten(), model.kernels)
    return nats / (labels != IGNORE).sum()
