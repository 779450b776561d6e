"""What makes the stock `lm_eval` find this package: files for the top of site-packages, and the hooks they call.

_lm_eval_edit_autoload  the shim at the top of site-packages, called when Python starts
hooks                   what it adds to the harness: one model type, one folder of tasks, readable errors
chat                    what there is to say of chat templates before a model loads
"""
