"""Tests that the torch runners' cache has memory for as many streams as there are."""

import torch

from chatbot.engine.local.kv_cache import MIN_POSITIONS, MIN_ROWS, SlotKVCache

HEADS, SIZE, LAYERS = 2, 8, 3
BYTES_PER_POSITION = 2 * LAYERS * HEADS * SIZE * 4
"""Keys and values of all layers in float32, for one position of one row."""


def store_token(cache: SlotKVCache, row: int, position: int, value: float) -> None:
    """Store one token of a row in all layers."""
    cache.set_write_positions(torch.tensor([row]), torch.tensor([position]), row + 1, position + 1)
    for layer in range(LAYERS):
        cache.store(layer, *torch.full((2, 1, HEADS, SIZE), value + layer))


def stored_values(cache: SlotKVCache, row: int, position: int) -> list[float]:
    """Return what each layer holds at a position, after checking that keys equal values."""
    states = cache.copy_row(row, position + 1)
    assert all(torch.equal(one, other) for one, other in zip(states[:3], states[3:], strict=True))
    return [float(state[0, position, 0]) for state in states[:LAYERS]]


def test_memory_follows_the_streams_and_what_they_have_read_stays() -> None:
    cache = SlotKVCache(32, 4096)
    assert cache.bytes == 0
    store_token(cache, 0, 7, 1.0)
    assert cache.bytes == MIN_ROWS * MIN_POSITIONS * BYTES_PER_POSITION
    store_token(cache, MIN_ROWS, 3, 10.0)
    assert cache.bytes == 2 * MIN_ROWS * MIN_POSITIONS * BYTES_PER_POSITION
    store_token(cache, MIN_ROWS - 1, MIN_POSITIONS, 100.0)
    assert cache.bytes == 2 * MIN_ROWS * 2 * MIN_POSITIONS * BYTES_PER_POSITION
    assert stored_values(cache, 0, 7) == [1.0, 2.0, 3.0]
    assert stored_values(cache, MIN_ROWS, 3) == [10.0, 11.0, 12.0]
    assert stored_values(cache, MIN_ROWS - 1, MIN_POSITIONS) == [100.0, 101.0, 102.0]


def test_there_is_never_more_room_than_asked_for() -> None:
    cache = SlotKVCache(2, 100)
    store_token(cache, 1, 99, 1.0)
    assert cache.capacity == (2, 100)
    cache = SlotKVCache(5, 300)
    for row in range(5):
        store_token(cache, row, 60 * row + 59, float(row))
    assert cache.capacity == (5, 300)
    assert [stored_values(cache, row, 60 * row + 59)[0] for row in range(5)] == [0, 1, 2, 3, 4]


def test_what_an_ended_stream_has_read_comes_into_a_row_that_no_step_has_been_in() -> None:
    cache = SlotKVCache(16, 1000)
    store_token(cache, 0, 5, 1.0)
    cache.restore_row(9, cache.copy_row(0, 6), 6)
    assert stored_values(cache, 9, 5) == stored_values(cache, 0, 5)
    cache.move_row(9, 2, 6)
    assert stored_values(cache, 2, 5) == [1.0, 2.0, 3.0]
    cache.zero_row(2)
    cache.zero_row(15)
    assert stored_values(cache, 2, 5) == [0.0, 0.0, 0.0]
