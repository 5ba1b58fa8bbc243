"""The operator's side, on the control machine: playbook runs, their progress and result, the doctor's local checks.

Everything that changes a cluster stands in the roles, so that a playbook run by hand does the same. Here is what a
person needs around it: which playbook, with which inventory, what happens now, how it ended and why. Only
`runs.py` imports ansible_runner, and only when a playbook runs: the container has none of Ansible.
"""
