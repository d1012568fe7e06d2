"""Byte-pair encoding: the UTF-8 bytes of a word, merged in pairs by a table that was learned.

Sennrich et al. 2016 (arXiv:1508.07909); over bytes, as in GPT-2.
"""

import heapq
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import regex

END_OF_WORD = "</w>"
MAX_CACHED_WORDS = 10_000

# The part of GPT-2's splitting that still matters after `tokenizer.WORD`: it splits
# <|endoftext|> into three.
SUBWORD = regex.compile(r"'?\p{L}+|\P{L}+")


class BytePairs:
    """Byte-pair encoding of words; `ids(word)` returns the token ids of a word, and caches them.

    Args:
        vocab: the id of each token.
        merges: pairs of tokens to merge into one, in the order in which they are tried.
        unknown: the id for a byte that `vocab` lacks.

    Raises:
        ValueError: if `vocab` lacks a token that a merge needs.
    """

    def __init__(
        self, vocab: Mapping[str, int], merges: Sequence[Sequence[str]], unknown: int
    ) -> None:
        symbols = _list_byte_symbols()
        self._byte_ids = [vocab.get(symbol, unknown) for symbol in symbols]
        self._last_byte_ids = [vocab.get(symbol + END_OF_WORD, unknown) for symbol in symbols]
        try:
            self._merges = {
                (vocab[left], vocab[right]): (rank, vocab[left + right])
                for rank, (left, right) in enumerate(merges)
            }
        except KeyError as error:
            raise ValueError(f"a merge needs {error}, which the vocabulary lacks") from None
        self.ids = lru_cache(MAX_CACHED_WORDS)(self._encode)

    def _encode(self, word: str) -> list[int]:
        """Return the ids of a word: the ids of its bytes, merged."""
        ids: list[int] = []
        for part in SUBWORD.findall(word):
            *first, last = part.encode()
            ids += self._merge([*(self._byte_ids[b] for b in first), self._last_byte_ids[last]])
        return ids

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge the pair of lowest rank, or the leftmost of several, again and again.

        This takes n log n steps: the ids are a linked list, so a merge moves none of them.
        """
        n = len(ids)
        following, previous = list(range(1, n + 1)), list(range(-1, n - 1))
        merges, gone = self._merges, -1
        # A candidate is rank · n + position: a number that orders by rank, then from the left.
        heap = [merges[pair][0] * n + i for i, pair in enumerate(pairwise(ids)) if pair in merges]
        heapq.heapify(heap)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            j = following[i]
            merge = merges.get((ids[i], ids[j])) if j < n else None
            if merge is None or merge[0] != rank:
                continue  # one of the two has been merged in the meantime
            ids[i], ids[j] = merge[1], gone
            following[i] = following[j]
            if following[i] < n:
                previous[following[i]] = i
            for left, right in ((previous[i], i), (i, following[i])):
                if left >= 0 and right < n and (pair := merges.get((ids[left], ids[right]))):
                    heapq.heappush(heap, pair[0] * n + left)
        return [id for id in ids if id != gone]


def _list_byte_symbols() -> list[str]:
    """Return the character that stands for each byte in the files (GPT-2's bytes_to_unicode).

    It is the byte's own character if that can be printed, otherwise a character above 255.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
