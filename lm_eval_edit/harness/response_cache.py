"""The harness's response cache (`--use_cache`), kept apart for each state of a model's weights."""

from __future__ import annotations

from lm_eval.api.model import CacheHook


def keep_apart(cache_hook: CacheHook, fingerprint: str) -> None:
    """Let a model's cache look up and write the answers of these weights alone, in a table named after them.

    The harness keys its cache by the request alone, so an edited model would be served an unedited one's answers.

    Args:
        cache_hook: What the harness has given the model; without `--use_cache` it holds no cache, and nothing is done.
        fingerprint: A hash of the weights as they stand.
    """
    database = cache_hook.dbdict
    if database is None:
        return
    # CachingLM looks up and writes through this very object, so its table decides both.
    database.tablename = f"edited_{fingerprint[:32]}"
    database.conn.execute(f'CREATE TABLE IF NOT EXISTS "{database.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
    database.conn.commit()
