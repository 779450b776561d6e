"""Sweeps: models x editors x data sets x edit seeds x checkpoints, evaluated on tasks, as a folder of standard results.

design        what a sweep is: models, methods, checkpoints, and the rows they make
parsing       designs from YAML files, presets and flags, checked as far as they alone can be
folder        the folder a sweep writes: where everything lies, which cells are there, whole and undamaged
checking      everything that can be known before a model loads: every problem, plans for every row
costs         what a sweep costs
estimate      the same, for `--dry_run`
evaluation    one loaded model, evaluated again and again on the same tasks
collapse      whether a model still models language at all
worker        one loaded model: edit a row to a checkpoint, evaluate a cell
engine        all rows of a sweep in this process
vllm_engine   all rows edited in this process, then served by vLLM
preparing     one loaded model: make the edits, write what a served model needs of them
edited_rows   rows of one loaded model, until each of their cells waits
prepared      cells whose edits are made, until they are served
serving       what is asked of vLLM, what is refused before, what comes back
served_cells  one engine after another, asked for the cells that wait
shared_blocks  which rows share the blocks below their edits, and that they do
routes        which cells will be adapters and which checkpoints, for `--dry_run`
ray_engine    the same as Ray tasks, on this machine or a cluster
ray_tasks     what a Ray worker does
ray_serving   rows edited as Ray tasks, then served by vLLM in an actor on each node
ray_actors    what a Ray worker does for that
reading       a sweep's folder as values, for plots and reports

`presets/` holds the paper's figures 3-8, one design for each panel, and protocols of other papers.
"""
