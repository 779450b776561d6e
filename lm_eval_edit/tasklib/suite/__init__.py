"""The eight tasks of Gu et al. (arXiv 2401.04700): documents, prompts, metrics; `tasks/edithurt_suite` calls it."""
