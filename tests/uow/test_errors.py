"""The error tree in the module's docstring is the tree of the classes."""

from __future__ import annotations

import inspect

from uow import errors


def test_the_docstring_is_the_tree_of_the_classes() -> None:
    told = [line.split()[1] for line in (errors.__doc__ or "").splitlines() if "──" in line]
    classes = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}

    assert sorted(told) == sorted(set(classes) - {"UnitOfWorkError"})
    assert sorted(errors.__all__) == sorted(classes)
    assert errors.UnitOfWorkError.__base__ is Exception
    for name in told:
        assert classes[name].__base__ is errors.UnitOfWorkError
        assert classes[name].__doc__
