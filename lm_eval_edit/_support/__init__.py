"""What every room may use and no room is about.

files        files and folders that are whole or absent; hashes, JSON and YAML with errors that name the line
extras       files of ours that belong to a checkpoint and are no weights of it
locks        one writer at a time in a folder
differences  what differs between two JSON-able values, in sentences
interrupts   what is said when a user stops a program
logging      no terminal acts upon what is logged; lines that every user is to see
terminal     text from outside in a form that no terminal and no parser acts upon
spreadsheet  CSV that a spreadsheet shows and never runs
versions     versions of what decides a result
old_names    module names of release 0.1, which still import
"""
