"""Names of the published implementation's parameters beside ours."""

from __future__ import annotations

_EXACT = {
    "transformer.wte.weight": "embedding",
    "transformer.ln_f.weight": "final_norm.weight",
    "transformer.ln_prelude.weight": "prelude_norm.weight",
    "transformer.C.weight": "readout.weight",
}
_PREFIX = {
    "transformer.prelude.": "prelude.",
    "transformer.core_block.": "core.",
    "transformer.coda.": "coda.",
    "transformer.h.": "prelude.",  # the plain transformer
    "transformer.adapter.": "injection.",
}


def our_name(published: str) -> str | None:
    """Translate a published parameter name; None for one that has no place in our model."""
    if published in _EXACT:
        return _EXACT[published]
    for theirs, ours in _PREFIX.items():
        if published.startswith(theirs):
            return ours + published.removeprefix(theirs)
    if published.startswith("value_embeds."):
        return "value_tables." + published.removeprefix("value_embeds.").removesuffix(".weight")
    return None
