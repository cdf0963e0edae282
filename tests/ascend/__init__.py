"""Stand-ins for what an Ascend machine has and this one has not.  They import nothing of the project: whoever changes
it must not change what it is held against.
"""
