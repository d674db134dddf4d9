"""Checks what every engine refuses: prompts, sampling values, models that cannot be batched."""

from transformers import PreTrainedModel

from chatbot.engine.protocol import EngineError, PromptTooLongError, Sampling


def check_prompt(prompt_ids: list[int], max_length: int) -> None:
    """Refuse an empty prompt and one that leaves no token of ``max_length`` for an answer.

    Raises EngineError, PromptTooLongError.
    """
    if not prompt_ids:
        raise EngineError("The prompt is empty. Send at least one token.")
    if len(prompt_ids) >= max_length:
        raise PromptTooLongError(
            f"The prompt has {len(prompt_ids)} tokens and {max_length} is the most for "
            "prompt and answer together. Shorten it."
        )


def check_sampling(sampling: Sampling) -> None:
    """Refuse sampling values that make no distribution. Raises EngineError."""
    rules = {
        "max_tokens": (sampling.max_tokens >= 1, "at least 1"),
        "temperature": (0 <= sampling.temperature <= 100, "from 0 to 100"),
        "top_p": (0 < sampling.top_p <= 1, "above 0, at most 1"),
        "top_k": (sampling.top_k >= 0, "0 or more"),
        "min_p": (0 <= sampling.min_p <= 1, "from 0 to 1"),
        "repetition_penalty": (0 < sampling.repetition_penalty <= 100, "above 0, at most 100"),
        "stop": (all(sampling.stop), "without empty strings"),
        "frequency_penalty": (-2 <= sampling.frequency_penalty <= 2, "from -2 to 2"),
        "presence_penalty": (-2 <= sampling.presence_penalty <= 2, "from -2 to 2"),
        "thinking": (sampling.thinking >= 0, "0 or more"),
        "logprobs": (0 <= (sampling.logprobs or 0) <= 20, "from 0 to 20, or None"),
    }
    for name, (good, rule) in rules.items():
        if not good:
            raise EngineError(f"{name} is {getattr(sampling, name)!r}, it must be {rule}.")


def effective_max_length(model: PreTrainedModel, wanted: int) -> int:
    """Return the most tokens of a stream: ``wanted``, or the model's own limit if that is less.

    Raises EngineError for a model with layers other than attention.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if other := kinds - {"full_attention", "sliding_attention"}:
        raise EngineError(
            f"{config.model_type} has {sorted(other)[0]} layers, which this engine cannot batch. "
            "Choose a base with attention layers only."
        )
    limits = [wanted, getattr(config, "max_position_embeddings", None)]
    if "sliding_attention" in kinds or getattr(config, "use_sliding_window", True):
        # Inside one window sliding attention is full attention.
        limits.append(getattr(config, "sliding_window", None))
    return min(int(limit) for limit in limits if limit)
