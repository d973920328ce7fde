/* One function a sub-command: argv[0] is the sub-command's word. Results go to stdout, log and progress to stderr. Each
 * returns the exit status: 0 done, 1 the work failed or found damage, 2 wrong usage or configuration. */
#pragma once

int data_main(int argc, char **argv);
int tokenizer_main(int argc, char **argv);
int train_main(int argc, char **argv);
int launch_main(int argc, char **argv);
int eval_main(int argc, char **argv);
int generate_main(int argc, char **argv);
int export_main(int argc, char **argv);
int report_main(int argc, char **argv);
int config_main(int argc, char **argv);
int plan_main(int argc, char **argv);
int plan_schedule_main(int argc, char **argv);
int plan_estimate_main(int argc, char **argv);
int plan_step_main(int argc, char **argv);
int plan_kernels_main(int argc, char **argv);
int plan_stages_main(int argc, char **argv);
int plan_trace_main(int argc, char **argv);
int bench_main(int argc, char **argv);
int bench_ops_main(int argc, char **argv);
int bench_train_main(int argc, char **argv);
int bench_generate_main(int argc, char **argv);
int bench_comm_main(int argc, char **argv);
int bench_contrastive_main(int argc, char **argv);
int bench_loader_main(int argc, char **argv);
int bench_checkpoint_main(int argc, char **argv);
int doctor_main(int argc, char **argv);
