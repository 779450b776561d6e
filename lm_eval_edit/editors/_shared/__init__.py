"""What methods share.

rows            tokenised prompts, aligned at the subject's last token
sites           the matrix that an edit changes, its keys, and the output it is part of
forward         the part of a forward pass that an edit can change
left            what stands left of the prompts, run once
head            the language-model head where somebody reads it
last_mlp        the last block's MLP where its output is read
groups          rows in groups of about one length
last_token      the last token of one text varied, block by block
subject_passes  passes up to the subjects, again and again while layers are edited
keys            keys of many requests, and the solves that turn them into directions
earlier_keys    editors that spare what earlier operations wrote
history         what a schedule's earlier operations have left
inverse_root    a running square root of (I + V Vᵀ)⁻¹
routing         which experts a model picks
experts         which of a mixture's experts are edited
target          target optimisation: the vector that makes the model say the new object
goals           what the MEMIT family wants a block to give at the subjects' last tokens
anchors         the norm that goals are scaled to, measured once and kept
batch_options   hyper-parameters that MEMIT and its kin share
scale           hyper-parameters with a scale, from the model itself
above           training passes of which the lower blocks are run once
steady          what a block computes before anything that is trained of it, run once
finetune        rows, loss and batches of the editors that fine-tune
trained         what fine-tuning trains of a layer: a down-projection, or some experts
adapters        a model with an adapter of peft's, for as long as it is trained
wrapping        editors that alter another editor's deltas
draws           seeds of what an editor draws
difference      the smallest delta between two matrices
isolation       another library's code, run without leaving a trace
progress        progress within one operation
"""
