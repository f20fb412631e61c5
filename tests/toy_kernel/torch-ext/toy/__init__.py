from ._ops import add_op_namespace_prefix, ops


def increment(values):
    """Add one to a float tensor, in place."""
    ops.increment(values)
    return values


def op_name():
    return add_op_namespace_prefix("increment")


__all__ = ["increment", "op_name"]
