"""The paper in a box: every table and figure of the paper is an item that a command runs.

`item` says what an item is and finds all of them, `lab` is what an item's experiment works with (cells, trainings, finished pieces, all
of them resumable in one output folder), `presets` the base model, tasks, seeds and sizes, `claims` the tests and the sentence in
words, `report` the tables and REPORT.md, `style` the pictures. An item is one module in `items/`, or one entry of such a module's
`ITEMS`; nothing else has to know of it.
"""
