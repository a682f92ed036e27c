"""python -m figures.statements: rewrite both documents."""

from . import main

main()
