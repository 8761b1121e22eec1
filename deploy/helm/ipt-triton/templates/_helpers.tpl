{{/* Name of everything of a release: its own, so that several stand side by side. */}}
{{- define "ipt.name" -}}
{{- if contains "ipt-triton" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-ipt-triton" (.Release.Name | trunc 29 | trimSuffix "-") }}{{ end -}}
{{- end }}

{{/* What selects the pods of a component: (list . "server"). */}}
{{- define "ipt.selector" -}}
app.kubernetes.io/name: ipt-triton
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "ipt.labels" -}}
{{ include "ipt.selector" . }}
app.kubernetes.io/version: {{ (first .).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (first .).Release.Service }}
helm.sh/chart: {{ (first .).Chart.Name }}-{{ (first .).Chart.Version }}
{{- end }}

{{- define "ipt.image" -}}
image: {{ printf "%s:%s" .repository (toString .tag) | quote }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}

{{/* What every pod of ours has: no token of the cluster, no root, no more rights than a process needs. */}}
{{- define "ipt.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ipt.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* Where a component may run: .nodeSelector, .tolerations, .affinity of its values. */}}
{{- define "ipt.place" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $ $key }}
{{ $key }}: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The replicas of a component rather on different nodes: (list . "server"). */}}
{{- define "ipt.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "ipt.selector" . | nindent 8 }}
{{- end }}

{{/* Copies the repository from object storage to /models, before the container that needs it. */}}
{{- define "ipt.fetch" -}}
- name: fetch
  {{- include "ipt.image" .Values.repository.objectStorage.image | nindent 2 }}
  args: [copy, --verbose, {{ required "repository.objectStorage.source: say where the repository is, s3:bucket/models for example" .Values.repository.objectStorage.source | quote }}, /models]
  {{- include "ipt.rclone" . | nindent 2 }}
  resources:
    requests: { cpu: 500m, memory: 256Mi }
    limits: { cpu: "2", memory: 1Gi }
  {{- include "ipt.container" . | nindent 2 }}
  volumeMounts:
    - { name: models, mountPath: /models }
    - { name: temporary, mountPath: /tmp }
{{- end }}

{{- define "ipt.rclone" -}}
env:
  - { name: HOME, value: /tmp }
{{- with .Values.repository.objectStorage.secret }}
envFrom:
  - secretRef: { name: {{ . | quote }} }
{{- end }}
{{- end }}

{{- define "ipt.models" -}}
- name: models
  {{- if eq .Values.repository.kind "claim" }}
  persistentVolumeClaim: { claimName: {{ .Values.repository.claim.existing | default (printf "%s-models" (include "ipt.name" .)) | quote }} }
  {{- else }}
  emptyDir: { sizeLimit: {{ .Values.repository.objectStorage.size }} }
  {{- end }}
{{- end }}

{{/* Photographs in the servers and those that wait, in the servers and in the gateways: what replicas are counted by. */}}
{{- define "ipt.demand" -}}
sum(ipt_photographs_under_way{namespace="{{ .Release.Namespace }}",service="{{ include "ipt.name" . }}-server"})
+ sum(nv_inference_pending_request_count{namespace="{{ .Release.Namespace }}",service="{{ include "ipt.name" . }}-server",model=~"restore.*"})
+ (sum(ipt_gateway_waiting{namespace="{{ .Release.Namespace }}",service="{{ include "ipt.name" . }}-gateway"}) or vector(0))
{{- end }}

{{/* A photograph may take minutes, and a start too: up at once, down late and one at a time. */}}
{{- define "ipt.behavior" -}}
scaleUp:
  policies: [{ type: Percent, value: 100, periodSeconds: 60 }]
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDownSeconds }}
  policies: [{ type: Pods, value: 1, periodSeconds: 60 }]
{{- end }}
