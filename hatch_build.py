"""Build hook: an editable install gets the start-up files only.

Without it hatchling would also put the force-included copy of `tasks/` into site-packages, where it goes stale beside
the checkout and outlives `pip uninstall`.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartupFilesHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        included = self.build_config.force_include
        build_data["force_include_editable"] = {
            source: target for source, target in included.items() if "_startup" in source
        }
