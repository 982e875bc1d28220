"""Study files, their runs on disk, and the stages that bind the core to a study."""
