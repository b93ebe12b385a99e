"""What a run needs: its folder and checkpoints, device, processes, console."""
