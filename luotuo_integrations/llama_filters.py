"""LlamaIndex's MetadataFilters in the store's own filter grammar."""

from collections.abc import Callable
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from luotuo_integrations.store.filters import Filter

_OPERATORS: dict[FilterOperator, Callable[[Any], Filter]] = {
    FilterOperator.EQ: lambda value: {"$eq": value},
    FilterOperator.NE: lambda value: {"$ne": value},
    FilterOperator.GT: lambda value: {"$gt": value},
    FilterOperator.GTE: lambda value: {"$gte": value},
    FilterOperator.LT: lambda value: {"$lt": value},
    FilterOperator.LTE: lambda value: {"$lte": value},
    FilterOperator.IN: lambda value: {"$in": value},
    FilterOperator.NIN: lambda value: {"$nin": value},
    FilterOperator.CONTAINS: lambda value: {"$contains": value},
    FilterOperator.TEXT_MATCH: lambda value: {"$contains": value},
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda value: {"$icontains": value},
    FilterOperator.IS_EMPTY: lambda _: {"$empty": True},
}


def translate_filters(filters: MetadataFilters | None) -> Filter | None:
    """Translate LlamaIndex's filters.

    Args:
        filters: Filters, nested or not; None or an empty list filters nothing.

    Returns:
        A filter in the grammar of ``store.filters``, or None.

    Raises:
        ValueError: If an operator is not known, or needs a list and has none.
    """
    if filters is None:
        return None
    translated = [
        translate_filters(part) if isinstance(part, MetadataFilters) else _translate_one(part)
        for part in filters.filters
    ]
    parts = [part for part in translated if part is not None]
    if not parts:
        return None
    if filters.condition == FilterCondition.NOT:  # none of them may match
        return {"$not": {"$or": parts}}
    return {"$or" if filters.condition == FilterCondition.OR else "$and": parts}


def _translate_one(part: MetadataFilter) -> Filter:
    if part.operator in (FilterOperator.ANY, FilterOperator.ALL):
        if not isinstance(part.value, list) or not part.value:
            msg = f"The filter operator {part.operator.value!r} needs a list that is not empty; given: {part.value!r}"
            raise ValueError(msg)
        word = "$or" if part.operator == FilterOperator.ANY else "$and"
        return {word: [{part.key: {"$contains": value}} for value in part.value]}
    if part.operator not in _OPERATORS:
        known = ", ".join(operator.value for operator in FilterOperator)
        msg = f"The filter operator {part.operator!r} is not known here; use one of {known}"
        raise ValueError(msg)
    return {part.key: _OPERATORS[part.operator](part.value)}
