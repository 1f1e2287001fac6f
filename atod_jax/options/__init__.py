"""What an option is, how a tree of them is read, compared and shown, and how plug-ins are found.

A section is a frozen dataclass; `option` gives a field its default, its meaning and its checks.
Knows no option of this project: those stand where they are used, and `config` collects them.
"""
