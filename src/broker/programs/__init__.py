"""Run any program as a tool. The tool starts the program for each job; the program does not know the broker.

command            finds the program, and checks that it can run, before the tool accepts work
placeholders       fields of the payload in the command
folders            the tool's folder on this machine: its lock, and a scratch folder for each job
orphans            ends processes that a killed run of the tool left running
process_groups     sends signals to a program and its child processes
process            starts a program, reads its output, and ends it
line_splitter      splits bytes into lines
pending_reports    a bounded queue of reports
reports            sends the lines of stderr to the broker as reports
outcome            turns the output and the exit status into a result or an error
background_writer  writes to a terminal from a thread, so that the terminal does not block work
runner             combines them in the handler of a `broker.client.Tool`
"""
