"""What methods share.

rows        tokenised prompts, aligned at the subject's last token
forward     the part of a forward pass that an edit can change
last_token  the last token of one text varied, block by block
keys        keys of many requests, and the solves that turn them into directions
target      target optimisation: the vector that makes the model say the new object
scale       hyper-parameters with a scale, from the model itself
finetune    rows, loss and batches of the editors that fine-tune
wrapping    editors that alter another editor's deltas
draws       seeds of what an editor draws
difference  the smallest delta between two matrices
isolation   another library's code, run without leaving a trace
progress    progress within one operation
"""
