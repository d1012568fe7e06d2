"""Byte pairs: the UTF-8 bytes of a word, merged pairwise by a table learned once.

Sennrich et al. 2016 (arXiv:1508.07909); over bytes as in GPT-2.
"""

import heapq
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import regex

END_OF_WORD = "</w>"
CACHED_WORDS = 10_000

# GPT-2's splitting of text, on what `tokenizer.WORD` finds; it still parts <| endoftext |>.
SUBWORD = regex.compile(r"'?\p{L}+|\P{L}+")


class BytePairs:
    """The token ids of words.

    Args:
        vocab: the id of each token.
        merges: pairs of tokens that become one, in the order in which they are tried.
        unknown: the id that stands for a byte that `vocab` lacks.

    Raises:
        ValueError: `vocab` lacks a token that a merge needs.
    """

    def __init__(
        self, vocab: Mapping[str, int], merges: Sequence[Sequence[str]], unknown: int
    ) -> None:
        symbols = _byte_symbols()
        self._byte_ids = [vocab.get(symbol, unknown) for symbol in symbols]
        self._last_byte_ids = [vocab.get(symbol + END_OF_WORD, unknown) for symbol in symbols]
        try:
            self._merges = {
                (vocab[left], vocab[right]): (rank, vocab[left + right])
                for rank, (left, right) in enumerate(merges)
            }
        except KeyError as error:
            raise ValueError(f"a merge needs {error}, which the vocabulary lacks") from None
        self.ids = lru_cache(CACHED_WORDS)(self._ids)

    def _ids(self, word: str) -> list[int]:
        """The ids of a word: those of its bytes, merged."""
        ids = []
        for part in SUBWORD.findall(word):
            *first, last = part.encode()
            ids += self._merge([*(self._byte_ids[b] for b in first), self._last_byte_ids[last]])
        return ids

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge always the pair of lowest rank, the leftmost of equals: n log n steps."""
        n = len(ids)
        following, previous = list(range(1, n + 1)), list(range(-1, n - 1))
        merges, gone = self._merges, -1
        # A candidate is rank · n + position: one number orders by rank, then from the left.
        heap = [merges[pair][0] * n + i for i, pair in enumerate(pairwise(ids)) if pair in merges]
        heapq.heapify(heap)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            j = following[i]
            merge = merges.get((ids[i], ids[j])) if j < n else None
            if merge is None or merge[0] != rank:
                continue  # one of the two has been merged since
            ids[i], ids[j] = merge[1], gone
            following[i] = following[j]
            if following[i] < n:
                previous[following[i]] = i
            for left, right in ((previous[i], i), (i, following[i])):
                if left >= 0 and right < n and (pair := merges.get((ids[left], ids[right]))):
                    heapq.heappush(heap, pair[0] * n + left)
        return [id for id in ids if id != gone]


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in the files (GPT-2's bytes_to_unicode)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
