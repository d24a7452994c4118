"""Mutants of the window kernels that answer the same, each with the reason."""

from typing import Final

_UNEQUAL: Final = "they are not equal here"
_LARGER: Final = "more memory than is needed"
_OPERATIONS: Final = "operations = np.empty(2 * (hi - lo) + task[1] - task[0], np.int64)"
_SMALLER: Final = "batches are smaller than they need to be"
_PAIRS: Final = "trees and pairs answer the same"
_BACK: Final = "if high[q] < high[q - 1] or (is_late and cutoffs[q] < cutoffs[q - 1]):"
_EVENTS: Final = "events = np.empty((3 * (hi - lo) + task[1] - task[0], 3), np.int32)"
_NEIGHBOURS: Final = "before, after = np.empty(hi - lo, np.int32), np.empty(hi - lo, np.int32)"
_LEFTMOST: Final = "no row is left of the first"
_HALVES: Final = "for begin in range(0, len(events) - half, 2 * half):"
_ROOT: Final = "the root is a left child of nobody, and place 0 is never usable"

_LARGE: Final = "is_large = q_end - q > most_readers or r_end - r > most_rows"
_FULL: Final = "is_full = q_end - first_reader > most_readers or r_end - first_row > most_rows"
_KNOWN_ALREADY: Final = "while p < len(by_known) and known[by_known[p]] <= cut:"
_ENOUGH: Final = "if b - a <= limit or last - q <= few_readers:"
_REACH: Final = "if reach >= 0 and now >= INT64_MIN + reach:"

_ZERO_SHIFT: Final = "NumPy shifts by 64 bits to 0; compiled code is held by `test_exact.py`"
_NOTHING_THERE: Final = "the square is not greater than what it is taken from: it has no part beyond that"
_GUARD: Final = "if i + j < count and total[j] != _ZERO:"
_HIGH_GUARD: Final = "if i + j + 1 < count:"
_COUNT_FIRST: Final = "column 0 is always a count"
_MORE_EXACT: Final = "wider sums answer the same"
_SPARE_LIMBS: Final = "limbs to spare"
_OF_ONE: Final = "the spread of one value is null whatever is written"
_FITS: Final = "if squares and (width > _SPREAD_WIDTH or 2 * width + bit_length(rows) > 191):"
_WANTED_SPREAD: Final = "if slots[w, VAR] >= 0 or slots[w, STD] >= 0:"
_INTEGER_SUM: Final = "if kind != FLOAT and slots[SUM] >= 0:"
_TOTALS: Final = "if slots[SUM] >= 0 or slots[MEAN] >= 0:"
_SPREADS: Final = "if n > _ONE and (slots[VAR] >= 0 or slots[STD] >= 0):"
_SET_SPREAD: Final = "if n > 1 and len(squares) > 0:"
_TOTAL_LIMBS: Final = "total = np.zeros((width + rows_bits + 63) // 64 + 1, np.uint64)"
_SQUARE_LIMBS: Final = "squares = np.zeros((2 * width + rows_bits + 63) // 64 + 2, np.uint64)"
_TREE_SQUARES: Final = "of_squares = (slots[:, VAR] >= 0) | (slots[:, STD] >= 0)"
_TREE_TOTAL: Final = "of_total = (slots[:, SUM] >= 0) | (slots[:, MEAN] >= 0) | of_squares"
_TREE_WIDTH: Final = "width, rows_bits = most - least + 53, bit_length(hi - lo) + 1"
_TREE_LIMBS: Final = "limbs = ((width + rows_bits + 63) // 64 + 1) * int(of_total.any())"
_TREE_SQUARE_LIMBS: Final = "square_limbs = ((2 * width + rows_bits + 63) // 64 + 2) * int(of_squares.any())"
_LEAVES: Final = "first, last = (a - lo + LEAF - 1) >> LEAF_BITS, (b - lo) >> LEAF_BITS"
_OF_SQUARES: Final = "of_squares = squares if slots[w, VAR] >= 0 or slots[w, STD] >= 0 else squares[:0]"
_OF_TOTAL: Final = (
    "of_total = total if slots[w, SUM] >= 0 or slots[w, MEAN] >= 0 or len(of_squares) else total[:0]"
)

# Mutants that answer the same, by (function, changed line, change).
SAME: Final[dict[tuple[str, str, str], str]] = {
    ("extremes_by_blocks", "size = max(size, tasks[k, 3] - tasks[k, 2])", "Sub to Add"): _LARGER,
    ("extremes_by_moves", "while size < hi - lo:", "Lt to LtE"): _LARGER,
    ("extremes_by_moves", "while size < hi - lo:", "Sub to Add"): _LARGER,
    ("extremes_by_moves", "keys = np.empty(hi - lo, np.int64)", "Sub to Add"): _LARGER,
    ("extremes_by_moves", "live = np.zeros(hi - lo, np.bool_)", "Sub to Add"): _LARGER,
    ("extremes_by_moves", _OPERATIONS, "Sub to Add"): _LARGER,
    ("distinct_by_moves", "live = np.zeros(hi - lo, np.bool_)", "Sub to Add"): _LARGER,
    ("distinct_by_moves", _OPERATIONS, "Sub to Add"): _LARGER,
    ("distinct_by_pairs", _NEIGHBOURS, "Sub to Add"): _LARGER,
    ("distinct_by_pairs", _EVENTS, "Sub to Add"): _LARGER,
    ("distinct_by_pairs", "tree = np.zeros(hi - lo + 1, np.int32)", "Sub to Add"): _LARGER,
    ("find_neighbours", "if right >= 0:", "GtE to Gt"): _LEFTMOST,
    ("put_pairs", "if right >= 0:", "GtE to Gt"): _LEFTMOST,
    ("subtract_pairs", "while half < len(events):", "Lt to LtE"): "there is no later half",
    ("subtract_pairs", _HALVES, "Sub to Add"): "there is no later half",
    ("fill_blocks", "while (1 << level) <= blocks:", "LtE to Lt"): "no range spans every block",
    ("usable_tree", "while size < hi - lo:", "Lt to LtE"): _LARGER,
    ("usable_tree", "while size < hi - lo:", "Sub to Add"): _LARGER,
    ("tree_put", "while node > 1:", "Gt to GtE"): _ROOT,
    ("find_last", "if node <= 1:", "LtE to Lt"): _ROOT,
    ("find_last", "while node > 1 and node & 1 == 0:", "Gt to GtE"): _ROOT,
    ("find_first", "while node > 1 and node & 1 == 1:", "Gt to GtE"): _ROOT,
    ("find_first", "while node < size:", "Lt to LtE"): "the first leaf is right of nothing",
    ("cut_batches", _LARGE, "Gt to GtE"): _SMALLER,
    ("cut_batches", _FULL, "Gt to GtE"): _SMALLER,
    (
        "cut_batches",
        _REACH,
        "GtE to Gt",
    ): "a window is longer than 0; at the end of time all rows are in reach",
    ("cut_batches", _LARGE, "Sub to Add"): _SMALLER,
    ("cut_batches", _FULL, "Sub to Add"): _SMALLER,
    ("cut_batches", _ENOUGH, "LtE to Lt"): _SMALLER,
    ("cut_batches", _ENOUGH, "Sub to Add"): _SMALLER,
    ("find_late", "if known[i] < known[i - 1]:", "Lt to LtE"): "rows asked one by one answer the same",
    ("window_start", "if tile > 0:", "Gt to GtE"): "a remainder of 0 is 0",
    ("advance", "return upper_bound(values, lo, at - 1, key)", "Sub to Add"): "a wider search",
    ("advance", "step += 1", "Add to Sub"): "no search, step by step",
    ("advance", "if step == 64:", "Eq to NotEq"): "a search at once",
    ("cut_tasks", "elif next_b - next_a > limit:", "Gt to GtE"): _SMALLER,
    ("cut_tasks", "elif next_b - next_a > limit:", "Sub to Add"): _SMALLER,
    ("cut_tasks", "limit = max(limit, 2 * (next_b - next_a))", "Sub to Add"): "tasks are larger",
    ("moves", "out[k] = i * 4 + INSERT", "Add to Sub"): "INSERT is 0",
    ("moves", _KNOWN_ALREADY, "LtE to Lt"): "a row that is counted is not counted again",
    ("magnitude", "if kind == 1 and bits < 0:", "Lt to LtE"): "0 less 0 is 0",
    ("double_of_128", "if shift > _ZERO:", "Gt to GtE"): _ZERO_SHIFT,
    ("double_of_limbs", "while top > 0 and limbs[top] == _ZERO:", "Gt to GtE"): "0 by any power of 2 is 0",
    ("limbs_spread", _GUARD, "And to Or"): _NOTHING_THERE,
    ("limbs_spread", _GUARD, "Lt to LtE"): _NOTHING_THERE,
    ("limbs_spread", _GUARD, "Add to Sub"): _NOTHING_THERE,
    ("limbs_spread", _HIGH_GUARD, "Lt to LtE"): _NOTHING_THERE,
    ("limbs_spread", _HIGH_GUARD, "Add to Sub"): _NOTHING_THERE,
    ("scan", "return 1075, 1075 + 11, False", "Add to Sub"): "integers of 64 bits fit either way",
    ("fits_prefix", "width = most - least + 53", "Sub to Add"): _MORE_EXACT,
    ("fits_prefix", _FITS, "And to Or"): _MORE_EXACT,
    ("fits_prefix", _FITS, "Gt to GtE"): _MORE_EXACT,
    ("fits_prefix", "return width + bit_length(rows) <= 126", "LtE to Lt"): _MORE_EXACT,
    ("write_totals", "if slots[SUM] >= 0 and not whole:", "GtE to Gt"): _COUNT_FIRST,
    ("write_totals", "if slots[MEAN] >= 0:", "GtE to Gt"): _COUNT_FIRST,
    ("write_spread", "if slots[VAR] >= 0:", "GtE to Gt"): _COUNT_FIRST,
    ("write_spread", "if slots[STD] >= 0:", "GtE to Gt"): _COUNT_FIRST,
    ("special_of", "return 4 if bits < 0 else 2", "Lt to LtE"): "infinity is not 0",
    ("fill_prefix", "if kind != UINT and raw < 0:", "Lt to LtE"): "less 0 is 0",
    ("any_spread", _WANTED_SPREAD, "GtE to Gt"): _COUNT_FIRST,
    ("sum_by_prefix", "scratch = max(scratch, tasks[k, 3] - tasks[k, 2] + 1)", "Sub to Add"): _LARGER,
    ("sum_by_prefix", "if not fits_prefix(least, most, hi - lo, squares):", "Sub to Add"): _MORE_EXACT,
    ("sum_by_prefix", "if b > a:", "Gt to GtE"): "an empty range counts 0",
    ("read_prefix", _INTEGER_SUM, "GtE to Gt"): _COUNT_FIRST,
    ("read_prefix", _TOTALS, "GtE to Gt"): _COUNT_FIRST,
    ("read_prefix", _SPREADS, "GtE to Gt"): _COUNT_FIRST,
    ("read_prefix", _SPREADS, "Gt to GtE"): _OF_ONE,
    ("add_value", "elif insert == (kind == UINT or raw >= 0):", "GtE to Gt"): "0 has returned before",
    ("read_set", _INTEGER_SUM, "GtE to Gt"): _COUNT_FIRST,
    ("read_set", _SET_SPREAD, "And to Or"): _OF_ONE,
    ("read_set", _SET_SPREAD, "Gt to GtE"): _OF_ONE,
    ("sum_by_moves", "width = most - least + 53", "Sub to Add"): _LARGER,
    ("sum_by_moves", "rows_bits = bit_length(hi - lo) + 1", "Sub to Add"): _LARGER,
    ("sum_by_moves", "rows_bits = bit_length(hi - lo) + 1", "Add to Sub"): _SPARE_LIMBS,
    ("sum_by_moves", _TOTAL_LIMBS, "Add to Sub"): _SPARE_LIMBS,
    ("sum_by_moves", _SQUARE_LIMBS, "Add to Sub"): _SPARE_LIMBS,
    ("sum_by_moves", "live = np.zeros(hi - lo, np.bool_)", "Sub to Add"): _LARGER,
    ("sum_by_moves", _OPERATIONS, "Sub to Add"): _LARGER,
    ("sum_by_moves", _OF_SQUARES, "GtE to Gt"): _COUNT_FIRST,
    ("sum_by_moves", _OF_TOTAL, "GtE to Gt"): _COUNT_FIRST,
    ("find_steps_back", _BACK, "Lt to LtE"): _PAIRS,
    ("find_steps_back", _BACK, "And to Or"): _PAIRS,
    ("sum_by_tree", _TREE_SQUARES, "GtE to Gt"): _COUNT_FIRST,
    ("sum_by_tree", _TREE_TOTAL, "GtE to Gt"): _COUNT_FIRST,
    ("sum_by_tree", _TREE_WIDTH, "Add to Sub"): _SPARE_LIMBS,
    ("sum_by_tree", _TREE_WIDTH, "Sub to Add"): _LARGER,
    ("sum_by_tree", _TREE_LIMBS, "Add to Sub"): _SPARE_LIMBS,
    ("sum_by_tree", _TREE_SQUARE_LIMBS, "Add to Sub"): _SPARE_LIMBS,
    ("sum_by_tree", "nodes = ((hi - lo) >> LEAF_BITS) + 2", "Sub to Add"): _LARGER,
    ("sum_by_tree", _LEAVES, "Sub to Add"): "more rows are looked at one by one; the last leaf is noticed",
    ("sum_by_tree", "whole = first < last", "Lt to LtE"): "both ends meet",
    ("extremes_by_tree", "while size < hi - lo:", "Lt to LtE"): _LARGER,
    ("extremes_by_tree", "while size < hi - lo:", "Sub to Add"): _LARGER,
    ("extremes_by_tree", "keys = np.empty(hi - lo, np.int64)", "Sub to Add"): _LARGER,
    ("is_after", "return bool(event[a] > event[b])", "Gt to GtE"): _UNEQUAL,
    ("is_after", "return bool(known[a] > known[b])", "Gt to GtE"): _UNEQUAL,
    ("is_after", "return bool(sequence[a] > sequence[b])", "Gt to GtE"): _UNEQUAL,
    ("is_after", "return a > b", "Gt to GtE"): "a row is not compared with itself",
    (
        "mark_newest",
        "elif known.size and known[i] > at:",
        "Gt to GtE",
    ): "a row known at the cut and not the newest then loses to the newest",
}
