"""The paper in miniature: DPO and GRPO on several mini rewards, judged exactly, told as a report.

What costs minutes is a job, a process of its own, two at a time; what is done is not done again.
"""
